"""The message: envelope, headers, body, and the edits that milters make to them."""
