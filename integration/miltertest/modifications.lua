-- Every modification. The header X-Do of a message says which the filter is to make.
local conn = open()
for _, action in ipairs({
    SMFIF_ADDHDRS, SMFIF_CHGHDRS, SMFIF_CHGBODY, SMFIF_ADDRCPT, SMFIF_DELRCPT, SMFIF_QUARANTINE,
    SMFIF_CHGFROM, SMFIF_ADDRCPT_PAR,
}) do
    expect(mt.test_action(conn, action), "action " .. action .. " was negotiated")
end
step(conn, "continue", "conninfo", "client.test", "192.0.2.7")

local function message(what)
    step(conn, "continue", "mailfrom", "<a@x.test>")
    step(conn, "continue", "rcptto", "<b@x.test>")
    step(conn, "continue", "header", "X-Do", what)
    step(conn, "continue", "eoh")
    step(conn, "continue", "bodystring", "old body\r\n")
    step(conn, "continue", "eom")
end

-- Each check with the least arguments that it takes.
local CHECKS = {
    { MT_HDRADD }, { MT_HDRCHANGE }, { MT_HDRDELETE }, { MT_HDRINSERT }, { MT_RCPTADD, "<new@x.test>" },
    { MT_RCPTDELETE, "<b@x.test>" }, { MT_BODYCHANGE }, { MT_QUARANTINE },
}

-- What was made is `op` with these arguments, and nothing else.
local function only(op, ...)
    for _, each in ipairs(CHECKS) do
        local made = mt.eom_check(conn, table.unpack(each))
        local deletion = each[1] == MT_HDRCHANGE and op == MT_HDRDELETE -- is a change, too: to nothing
        expect(made == (each[1] == op or deletion), "check " .. each[1] .. " for check " .. tostring(op))
    end
    if op ~= nil then
        expect(mt.eom_check(conn, op, ...), "the arguments of check " .. op)
    end
end

message("add")
only(MT_HDRADD, "X-Added", "one\n\ttwo")
message("change")
only(MT_HDRCHANGE, "Subject", "new")
message("delete")
only(MT_HDRDELETE, "X-Old")
message("insert")
only(MT_HDRINSERT, "X-First", "1", 0)
message("recipient")
only(MT_RCPTADD, "<new@x.test>")
message("remove")
only(MT_RCPTDELETE, "<b@x.test>")
message("body")
only(MT_BODYCHANGE, "new body\r\n")
message("quarantine")
only(MT_QUARANTINE, "looks odd")

message("all")
expect(mt.eom_check(conn, MT_HDRADD, "X-Added", "one\n\ttwo"), "all: add")
expect(mt.eom_check(conn, MT_HDRCHANGE, "Subject", "new"), "all: change")
expect(mt.eom_check(conn, MT_HDRDELETE, "X-Old"), "all: delete")
expect(mt.eom_check(conn, MT_HDRINSERT, "X-First", "1", 0), "all: insert")
expect(mt.eom_check(conn, MT_RCPTADD, "<new@x.test>"), "all: recipient")
expect(mt.eom_check(conn, MT_RCPTDELETE, "<b@x.test>"), "all: remove")
expect(mt.eom_check(conn, MT_BODYCHANGE, "new body\r\n"), "all: body")
expect(mt.eom_check(conn, MT_QUARANTINE, "looks odd"), "all: quarantine")
expect(mt.getheader(conn, "X-Added", 0) == "one\n\ttwo", "the value of the header that was added")

message("nothing")
only(nil)
mt.disconnect(conn)
