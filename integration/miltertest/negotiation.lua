-- What is agreed on by whatever versions, actions and steps an MTA offers.
local EVERYTHING = 0x1FFFFF

-- The filter adds headers, wants no HELO and no unknown commands, and never answers headers.
for _, version in ipairs({ 2, 3, 4, 6 }) do
    local conn = open(version, nil, nil)
    expect(mt.test_action(conn, SMFIF_ADDHDRS), "headers may be added")
    expect(not mt.test_action(conn, SMFIF_CHGBODY), "the body is not changed")
    expect(mt.test_option(conn, SMFIP_NOHELO), "no HELO")
    expect(not mt.test_option(conn, SMFIP_NOMAIL), "but MAIL")
    mt.disconnect(conn)
end

local conn = open(6, nil, EVERYTHING)
expect(mt.test_option(conn, SMFIP_NOUNKNOWN), "no unknown commands")
expect(mt.test_option(conn, SMFIP_NR_HDR), "no reply to headers")
expect(mt.test_option(conn, SMFIP_HDR_LEADSPC), "leading space")
expect(not mt.test_option(conn, SMFIP_NR_EOH), "but to their end")
step(conn, "continue", "conninfo", "client.test", "192.0.2.7")
expect(not pcall(mt.helo, conn, "me.test"), "HELO is not possible")
step(conn, "continue", "mailfrom", "<a@x.test>")
step(conn, "continue", "rcptto", "<b@x.test>")
tell(conn, "header", "Subject", " with a space")
tell(conn, "header", "To", " <b@x.test>")
step(conn, "continue", "eoh")
step(conn, "continue", "eom")
expect(mt.eom_check(conn, MT_HDRADD, "X-Headers", " 2"), "both headers were seen")
mt.disconnect(conn)

-- An MTA that knows neither: the filter answers headers, and there is no space.
conn = open(6, nil, 0x7F)
expect(not mt.test_option(conn, SMFIP_NR_HDR), "a reply to headers")
expect(not mt.test_option(conn, SMFIP_HDR_LEADSPC), "no leading space")
step(conn, "continue", "conninfo", "client.test", "192.0.2.7")
step(conn, "continue", "mailfrom", "<a@x.test>")
step(conn, "continue", "rcptto", "<b@x.test>")
step(conn, "continue", "header", "Subject", "without")
step(conn, "continue", "eoh")
step(conn, "continue", "eom")
expect(mt.eom_check(conn, MT_HDRADD, "X-Headers", "1"), "the header was seen")
mt.disconnect(conn)

-- An MTA that does not let filters add headers, and one that is too old.
for _, offer in ipairs({ { 6, SMFIF_CHGBODY }, { 1, nil } }) do
    conn = mt.connect(socket)
    expect(mt.negotiate(conn, offer[1], EVERYTHING, offer[2]) ~= nil, "the connection is closed")
    mt.disconnect(conn, false)
end
