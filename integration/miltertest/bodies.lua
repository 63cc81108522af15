-- Large bodies and many messages; the filter counts and says what it saw.
local conn = open()
step(conn, "continue", "conninfo", "client.test", "192.0.2.7")
for count = 1, 50 do
    step(conn, "continue", "mailfrom", "<" .. count .. "@x.test>")
    step(conn, "continue", "rcptto", "<b@x.test>")
    step(conn, "continue", "eoh")
    for _ = 1, 3 do
        step(conn, "continue", "bodystring", string.rep("0123456789abcde\n", 4095))
    end
    step(conn, "continue", "eom")
    expect(mt.eom_check(conn, MT_HDRADD, "X-Seen", count .. " " .. 3 * 65520), "message " .. count)
    if count % 10 == 0 then
        tell(conn, "abort")
    end
end
step(conn, "continue", "mailfrom", "<file@x.test>")
step(conn, "continue", "rcptto", "<b@x.test>")
step(conn, "continue", "eoh")
step(conn, "continue", "bodyfile", file)
step(conn, "continue", "eom")
expect(mt.eom_check(conn, MT_HDRADD, "X-Seen", "51 " .. size), "the file")
mt.disconnect(conn)
