"""Start and stop the real servers of the integration tests, on loopback, each in its own directory."""
