"""A Dovecot of our own that takes LMTP and delivers to Maildirs: all its files are in the run's directory."""

from dataclasses import dataclass
from pathlib import Path

from integration.services.process import Run, Service, answers

CONFIG = """\
base_dir = {place}/run
state_dir = {place}/run
log_path = {log}
protocols = lmtp
ssl = no
mail_location = maildir:{place}/mail/%n
mail_uid = {user}
mail_gid = nogroup
first_valid_uid = 1
first_valid_gid = 1
default_internal_user = dovecot
default_login_user = dovenull
auth_username_format = %Ln
lmtp_rcpt_check_quota = no
passdb {{
  driver = passwd-file
  args = {place}/users
}}
userdb {{
  driver = passwd-file
  args = {place}/users
}}
service lmtp {{
  unix_listener {place}/lmtp {{
    mode = 0666
  }}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
"""

USER = "nobody"


@dataclass(frozen=True, slots=True)
class Dovecot:
    """A running instance.

    Attributes:
        socket: where it takes LMTP.
        mail: the Maildirs, one for each user.
    """

    socket: Path
    mail: Path
    service: Service

    def messages(self, user: str) -> list[bytes]:
        """What one user has got."""
        return [path.read_bytes() for path in sorted((self.mail / user / "new").glob("*"))]


def start_dovecot(run: Run, users: tuple[str, ...], name: str = "dovecot") -> Dovecot:
    """Start it with these users."""
    place = run.place(name, USER)
    config = place / "dovecot.conf"
    (place / "users").write_text("".join(f"{user}:{{PLAIN}}secret::::::\n" for user in users))
    config.write_text(CONFIG.format(place=place, user=USER, log=run.directory / f"{name}-mail.log"))
    service = run.spawn(name, ("/usr/sbin/dovecot", "-F", "-c", str(config)))
    service.wait_ready(lambda: (place / "lmtp").exists() and answers(f"unix:{place / 'lmtp'}"))
    return Dovecot(place / "lmtp", place / "mail", service)
