"""One address of an envelope or a header, as a value that knows its parts.

It keeps what was typed and compares by what is meant: two addresses are equal if they reach the same mailbox,
as far as one can know without its host (see `addresses`), so that `user@xn--zckzah.example` equals
`user@テスト.example`. Parameters do not take part in that.
"""

from dataclasses import dataclass
from typing import Self

import idna

from milterchain.mail.addresses import address_key, normalize_domain, split_address
from milterchain.mail.envelope import Path, bare

__all__ = ["Address"]


@dataclass(frozen=True, slots=True, eq=False)
class Address:
    """An address with its ESMTP parameters.

    Attributes:
        raw: as typed, with angle brackets if they were typed.
        args: the parameters of MAIL or RCPT, one each, as typed; empty for an address of a header.
    """

    raw: bytes
    args: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, text: str, *args: str) -> Self:
        """Build one from text: `Address.of("joe@example.org", "NOTIFY=NEVER")`.

        Raises:
            UnicodeEncodeError: the text has half of a surrogate pair.
        """
        return cls(text.encode("utf-8"), tuple(arg.encode("utf-8") for arg in args))

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, Address) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        """The address for people: without brackets, its domain in Unicode."""
        local, domain = split_address(self.raw)
        text = local.decode("utf-8", "backslashreplace")
        return f"{text}@{self.unicode_domain}" if domain else text

    @property
    def key(self) -> tuple[bytes, bytes]:
        """What is equal for equal addresses: local part and normalised domain."""
        return address_key(self.raw)

    @property
    def path(self) -> Path:
        """The same for the envelope of a message."""
        return Path(self.raw, self.args)

    @property
    def bare(self) -> bytes:
        """The address without brackets; empty for the null sender."""
        return bare(self.raw)

    @property
    def local(self) -> bytes:
        """The local part as typed, quotes included."""
        return split_address(self.raw)[0]

    @property
    def domain(self) -> bytes:
        """The domain as typed; empty where there is none."""
        return split_address(self.raw)[1]

    @property
    def ascii_domain(self) -> bytes:
        """The domain in lower case and A-labels; what cannot be written so stays as it is."""
        return normalize_domain(self.domain)

    @property
    def unicode_domain(self) -> str:
        """The domain in lower case and U-labels; what is no valid A-label stays as it is."""
        domain = self.ascii_domain
        try:
            return idna.decode(domain) if b"xn--" in domain else domain.decode("utf-8")
        except UnicodeError:  # includes idna.IDNAError
            return self.domain.removesuffix(b".").decode("utf-8", "backslashreplace").lower()

    @property
    def parameters(self) -> dict[bytes, bytes]:
        """The parameters by keyword in upper case; those without a value have an empty one.

        Values are as typed: xtext (RFC 3461 section 4) is not decoded. If a keyword occurs twice, the last
        one counts.
        """
        split = (arg.partition(b"=") for arg in self.args)
        return {keyword.upper(): value for keyword, _, value in split}
