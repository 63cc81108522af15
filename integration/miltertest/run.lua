-- Runs a script: `miltertest -D script=SCRIPT -D socket=ADDRESS -s THIS`. What follows is what scripts share.

function fail(...)
    error(string.format(...), 2)
end

REPLIES = {
    continue = SMFIR_CONTINUE,
    accept = SMFIR_ACCEPT,
    reject = SMFIR_REJECT,
    tempfail = SMFIR_TEMPFAIL,
    discard = SMFIR_DISCARD,
    skip = SMFIR_SKIP,
    reply_code = SMFIR_REPLYCODE,
}

-- A connection on which options are agreed. mt.negotiate takes the steps first, whatever its manual says.
function open(version, actions, steps)
    local conn = mt.connect(socket, 20, 0.05)
    if conn == nil then
        fail("cannot connect to %s", socket)
    end
    local problem = mt.negotiate(conn, version, steps, actions)
    if problem ~= nil then
        fail("negotiation: %s", problem)
    end
    return conn
end

-- Do one step: `step(conn, "mailfrom", "<a@x>")` is mt.mailfrom; the reply must be the one that is named.
function step(conn, expected, name, ...)
    local problem = mt[name](conn, ...)
    if problem ~= nil then
        fail("%s: %s", name, problem)
    end
    local reply = mt.getreply(conn)
    if expected ~= nil and reply ~= REPLIES[expected] then
        fail("%s: %s expected, %s came", name, expected, string.char(reply))
    end
end

-- Say something that has no reply, or none that matters.
function tell(conn, name, ...)
    step(conn, nil, name, ...)
end

function expect(truth, what)
    if not truth then
        fail("not so: %s", what)
    end
end

-- Of an error in a script, miltertest itself tells nothing but its exit status.
local done, problem = xpcall(dofile, debug.traceback, script)
if not done then
    print(problem)
    error(problem)
end
