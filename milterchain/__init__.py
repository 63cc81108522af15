"""milterchain: a chaining SMTP proxy for milters, and the milter library that it stands on."""

__all__ = ["__version__"]

__version__ = "0.1.0"
