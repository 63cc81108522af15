"""Hashes of passwords, as the users' file has them: scrypt (RFC 7914), written as PHC strings.

``$scrypt$ln=14,r=8,p=5$SALT$HASH`` with `ln` the binary logarithm of N, and base64 without padding.
"""

import base64
import binascii
import hashlib
import hmac
import os
import re
from dataclasses import dataclass
from typing import Final, Self

__all__ = ["PasswordHash"]

LOG_N: Final = 14
BLOCK_SIZE: Final = 8
PARALLELISM: Final = 5
"""Among OWASP's settings of equal strength those with the least memory, 16 MiB: several logins may be checked
at the same time. About a fifth of a second of one core."""
SALT_SIZE: Final = 16
HASH_SIZE: Final = 32

MAX_LOG_N: Final = 20
MAX_BLOCK_SIZE: Final = 32
MAX_PARALLELISM: Final = 64
MAX_MEMORY: Final = 2**28
"""A hash from elsewhere must not take all memory."""

_FORM: Final = re.compile(
    r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{22,86})",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """The hash of one password."""

    log_n: int
    block_size: int
    parallelism: int
    salt: bytes
    digest: bytes

    @classmethod
    def make(cls, password: bytes) -> Self:
        """Hash a password with a new salt."""
        salt = os.urandom(SALT_SIZE)
        digest = _scrypt(password, salt, (LOG_N, BLOCK_SIZE, PARALLELISM), HASH_SIZE)
        return cls(LOG_N, BLOCK_SIZE, PARALLELISM, salt, digest)

    @classmethod
    def of_nobody(cls) -> Self:
        """What no password fits, though it takes as long to find out."""
        return cls(LOG_N, BLOCK_SIZE, PARALLELISM, os.urandom(SALT_SIZE), bytes(HASH_SIZE))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the written form.

        Raises:
            ValueError: it is none, or asks for too much.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError("is no scrypt hash; `milterchain hash-password` makes them")
        log_n, block_size, parallelism = (int(number) for number in match.group(1, 2, 3))
        cheap = 1 <= log_n <= MAX_LOG_N and 1 <= block_size <= MAX_BLOCK_SIZE
        if not cheap or not 1 <= parallelism <= MAX_PARALLELISM or _memory(log_n, block_size, 0) > MAX_MEMORY:
            raise ValueError("is a scrypt hash that takes too much time or memory")
        try:
            salt, digest = (_decode(part) for part in match.group(4, 5))
        except binascii.Error:
            raise ValueError("is no scrypt hash; its base64 is wrong") from None
        return cls(log_n, block_size, parallelism, salt, digest)

    def fits(self, password: bytes) -> bool:
        """Whether this is the password. Takes its time; call it in a thread."""
        settings = (self.log_n, self.block_size, self.parallelism)
        return hmac.compare_digest(_scrypt(password, self.salt, settings, len(self.digest)), self.digest)

    def __str__(self) -> str:
        settings = f"ln={self.log_n},r={self.block_size},p={self.parallelism}"
        return f"$scrypt${settings}${_encode(self.salt)}${_encode(self.digest)}"


def _scrypt(password: bytes, salt: bytes, settings: tuple[int, int, int], size: int) -> bytes:
    log_n, block_size, parallelism = settings
    memory = _memory(log_n, block_size, parallelism)
    return hashlib.scrypt(
        password, salt=salt, n=1 << log_n, r=block_size, p=parallelism, dklen=size, maxmem=memory
    )


def _memory(log_n: int, block_size: int, parallelism: int) -> int:
    return 128 * block_size * ((1 << log_n) + parallelism + 2) + 2**16


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii").rstrip("=")


def _decode(text: str) -> bytes:
    return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
