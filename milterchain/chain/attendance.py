"""Which milters take part in a session, and in the present message.

Members with a late condition (see `conditions`) are opened when a message is meant for them. One with a
condition on recipients hears of MAIL when the first such recipient comes; if it refuses that, it has refused
each of its recipients.
"""

from collections.abc import Iterable, Sequence

from milterchain.chain.line import Step
from milterchain.chain.member import Member
from milterchain.mail.envelope import Path

__all__ = ["Attendance"]


class Attendance:
    """The members of a session, always in configured order.

    Attributes:
        members: all that the client is meant for.
        early: those that hear of the client at once.
        late: the others.
        present: those that hear of the present message, or will if a recipient of theirs comes.
    """

    __slots__ = ("_mail", "early", "late", "members", "present")

    def __init__(self, members: Iterable[Member]) -> None:
        self.members = tuple(members)
        self.early = tuple(member for member in self.members if not member.plan.conditions.late)
        self.late = tuple(member for member in self.members if member.plan.conditions.late)
        self.present: Sequence[Member] = self.early
        self._mail: dict[Member, Step] = {}
        for member in self.late:
            member.must_reopen = True

    def begin(self, sender: Path, *, authenticated: bool) -> list[Member]:
        """A message begins; those that hear of it at once."""
        self.present = [
            member
            for member in self.members
            if member.plan.conditions.message(sender, authenticated=authenticated)
        ]
        self._mail = {}
        return [member for member in self.present if member.plan.conditions.recipients is None]

    def joining(self, recipient: Path) -> list[Member]:
        """Those for whom this recipient is the first of theirs."""
        return [
            member
            for member in self.present
            if member.plan.conditions.recipients is not None
            and member not in self._mail
            and member.plan.conditions.recipient(recipient)
        ]

    def joined(self, member: Member, mail: Step) -> None:
        """A member has been told MAIL, after a recipient of its own came."""
        self._mail[member] = mail

    def hearing(self, recipient: Path) -> list[tuple[Member, Step | None]]:
        """Those that hear of a recipient; with what they said to MAIL if that counts for it."""
        return [
            (member, self._mail.get(member))
            for member in self.present
            if member.plan.conditions.recipient(recipient)
            and (member.plan.conditions.recipients is None or member in self._mail)
        ]

    def taking_part(self, recipients: Sequence[Path]) -> list[Member]:
        """Those that are meant for the message, with the recipients that are left."""
        return [
            member
            for member in self.present
            if member.plan.conditions.recipients is None
            or (member in self._mail and any(map(member.plan.conditions.recipient, recipients)))
        ]
