"""The engine: several milters asked at once before the message, and one after the other for it."""
