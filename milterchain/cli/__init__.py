"""The commands."""

from milterchain.cli.app import main

__all__ = ["main"]
