-- Every reply at every stage: the filter reads from the client's name what to say, `STAGE.REPLY`.
local STEPS = {
    { "connect", "conninfo" },
    { "helo", "helo", "me.test" },
    { "mail", "mailfrom", "<a@x.test>" },
    { "rcpt", "rcptto", "<b@x.test>" },
    { "data", "data" },
    { "header", "header", "Subject", "x" },
    { "end_of_headers", "eoh" },
    { "body", "bodystring", "x\r\n" },
    { "end_of_message", "eom" },
}

local function play(stage, reply)
    local conn = open()
    for _, each in ipairs(STEPS) do
        local now, name = each[1], each[2]
        local expected = now == stage and reply or "continue"
        if now == "connect" then
            step(conn, expected, name, stage .. "." .. reply, "192.0.2.7")
        else
            step(conn, expected, name, table.unpack(each, 3))
        end
        if now == stage then
            break
        end
    end
    if reply == "reply_code" and stage == "end_of_message" then
        expect(mt.eom_check(conn, MT_SMTPREPLY, "550", "5.7.1", "not 100%% today"), "the text of the reply")
    end
    mt.disconnect(conn)
end

for _, each in ipairs(STEPS) do
    for _, reply in ipairs({ "accept", "reject", "tempfail", "discard", "reply_code" }) do
        play(each[1], reply)
    end
end
play("body", "skip")

local conn = open()
step(conn, "continue", "conninfo", "unknown.reject", "192.0.2.7")
step(conn, "reject", "unknown", "FOO")
-- A refused recipient is not the end of a message.
step(conn, "continue", "mailfrom", "<a@x.test>")
step(conn, "continue", "rcptto", "<b@x.test>")
mt.disconnect(conn)

conn = open()
step(conn, "continue", "conninfo", "rcpt.reject", "192.0.2.7")
step(conn, "continue", "mailfrom", "<a@x.test>")
step(conn, "reject", "rcptto", "<b@x.test>")
step(conn, "continue", "rcptto", "<good@x.test>")
step(conn, "continue", "data")
step(conn, "continue", "eoh")
step(conn, "continue", "eom")
mt.disconnect(conn)
