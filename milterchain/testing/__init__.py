"""Helpers for tests, for users of the library and for its own tests."""
