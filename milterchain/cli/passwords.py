"""`milterchain hash-password`: a line for the file of users, without the password ever on a command line."""

import sys
from getpass import getpass
from typing import Annotated

import typer

from milterchain.errors import ConfigurationError
from milterchain.proxy.passwords import PasswordHash

__all__ = ["hash_password"]


def hash_password(
    login: Annotated[str, typer.Argument(metavar="LOGIN", help="As whom the user logs in.")],
) -> None:
    """Print the line of one user for the file of users. Asks for the password, or reads it from a pipe."""
    if (
        not login
        or ":" in login
        or login.startswith("#")
        or not login.isprintable()
        or login != login.strip()
    ):
        raise ConfigurationError([f"{login!r} cannot be a login; colons, line ends and a # before it cannot"])
    typer.echo(f"{login}:{PasswordHash.make(_password())}")


def _password() -> bytes:
    if not sys.stdin.isatty():
        password = sys.stdin.buffer.readline().rstrip(b"\r\n")
    else:
        text = getpass("Password: ")
        if getpass("Once more: ") != text:
            raise ConfigurationError(["the passwords differ"])
        password = text.encode("utf-8")
    if not password or b"\0" in password:
        raise ConfigurationError(["a password needs at least one character, and none of them NUL"])
    return password
