"""A Postfix of our own: its configuration, queue and data in the run's directory.

Both sides of every comparison use the same instance settings, and those make Postfix add and change
as little as it can: no header rewriting, no missing headers, no dropped headers, no line folding on
delivery.  The queue is on tmpfs where there is one, so that the disk is not what is measured.
"""

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from integration.services.process import Run, Service, ServiceError, answers, free_port, wait_for

MAIN = """\
compatibility_level = 3.6
queue_directory = {queue}
data_directory = {data}
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file_prefixes = {run}
import_environment = MAIL_CONFIG TZ LANG=C
myhostname = {hostname}
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
relayhost = [{sink_host}]:{sink_port}
relay_domains =
alias_maps =
alias_database =
local_transport = error:no local delivery
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtp_tls_security_level = none
smtpd_tls_security_level = none
smtpd_recipient_restrictions = check_recipient_access regexp:{refusals}, permit
smtpd_forbid_bare_newline = normalize
smtpd_forbid_bare_newline_exclusions =
local_header_rewrite_clients =
always_add_missing_headers = no
message_drop_headers =
smtp_line_length_limit = 0
smtputf8_enable = yes
enable_long_queue_ids = yes
enable_original_recipient = no
message_size_limit = 104857600
mailbox_size_limit = 0
queue_minfree = 0
in_flow_delay = 0
default_process_limit = 120
qmgr_message_active_limit = 60000
qmgr_message_recipient_limit = 60000
default_destination_concurrency_limit = 50
initial_destination_concurrency = 50
default_destination_concurrency_failed_cohort_limit = 0
minimal_backoff_time = 2s
maximal_backoff_time = 2s
queue_run_delay = 2s
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_recipient_limit = 2000
smtpd_hard_error_limit = 1000
smtpd_soft_error_limit = 1000
smtpd_peername_lookup = yes
"""

REFUSALS = """\
/^refused/    550 5.1.1 no such user here
/^deferred/   450 4.2.0 not now
"""

MASTER = """\
{services}
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
tlsmgr    unix  - - n 1000? 1 tlsmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
smtp      unix  - - n - - smtp
relay     unix  - - n - - smtp
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
"""


@dataclass(slots=True)
class Postfix:
    """One instance.

    Attributes:
        config: its configuration directory.
        queue: its queue directory.
    """

    run: Run
    name: str
    port: int
    config: Path
    queue: Path
    service: Service | None = field(default=None, init=False)

    @property
    def address(self) -> str:
        """Of its smtpd, as `HOST:PORT`."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the master process and wait for the smtpd port."""
        service = self.run.spawn(self.name, ("/usr/lib/postfix/sbin/master", "-c", str(self.config), "-d"))
        service.wait_ready(lambda: answers(f"inet:{self.address}"))
        self.service = service

    def kill(self) -> None:
        """End every process of the instance at once, as a power cut would."""
        if self.service is None:
            return
        self.service.kill()
        self.service = None

    def stop(self) -> None:
        """End it in order."""
        if self.service is not None:
            self.service.stop()
            self.service = None

    def logged(self, *parts: str) -> str:
        """Wait for a line of the mail log that has all these parts, and return it."""
        log = self.run.directory / f"{self.name}-mail.log"

        def found() -> str | None:
            lines = log.read_text(errors="replace").splitlines()
            return next((line for line in lines if all(part in line for part in parts)), None)

        return wait_for(found, f"{parts} in the log of {self.name}") or ""

    def queued(self) -> int:
        """How many whole messages wait in the queue."""
        count = 0
        for name in ("incoming", "active", "deferred"):
            for path in (self.queue / name).rglob("*"):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    # Postfix makes a file executable when the message in it is complete.
                    count += stat.S_ISREG(status.st_mode) and bool(status.st_mode & stat.S_IXUSR)
        return count

    def wait_until_empty(self, timeout: float = 120) -> None:
        """Wait until everything was delivered."""
        wait_for(lambda: self.queued() == 0, f"{self.name} has an empty queue", timeout)


def _age(config: Path) -> None:
    """Postfix waits for seconds until a file that it reads was not changed just now."""
    past = time.time() - 60
    for path in config.iterdir():
        os.utime(path, (past, past))


def _queue_directory(run: Run, name: str) -> Path:
    if os.access("/dev/shm", os.W_OK):
        path = Path(tempfile.mkdtemp(prefix=f"mc-{name}-", dir="/dev/shm"))
        path.chmod(0o755)
        run.at_close(lambda: shutil.rmtree(path, ignore_errors=True))
        return path
    return run.place(f"{name}-queue")


def start_postfix(
    run: Run,
    name: str,
    *,
    relay_to: str,
    milters: Sequence[str] = (),
    hostname: str = "mx.example.test",
    settings: Mapping[str, str] | None = None,
    smtpd_options: Sequence[str] = (),
    services: str = "",
    files: Mapping[str, str] | None = None,
) -> Postfix:
    """Configure and start an instance.

    Args:
        run: that owns it.
        name: of its directory and log.
        relay_to: `HOST:PORT` of its relayhost.
        milters: addresses as `inet:HOST:PORT` or `unix:/PATH`.
        hostname: its own name, in the greeting and in Received.
        settings: more lines for main.cf.
        smtpd_options: `name=value` for the smtpd line of master.cf.
        services: lines of master.cf in place of that one; the first begins with `PORT` or `HOST:PORT`.
        files: more files for the configuration directory, paths relative to it.
    """
    config = run.place(name)
    data = run.place(f"{name}-data", "postfix")
    queue = _queue_directory(run, name)
    if not services:
        options = "".join(f"\n    -o {option}" for option in smtpd_options)
        services = f"{free_port()} inet n - n - 120 smtpd{options}"
    port = int(services.split(maxsplit=1)[0].rpartition(":")[2])
    sink_host, _, sink_port = relay_to.rpartition(":")
    refusals = config / "refusals"
    refusals.write_text(REFUSALS)
    for path, file_text in (files or {}).items():
        (config / path).parent.mkdir(exist_ok=True)
        (config / path).write_text(file_text)
    text = MAIN.format(
        queue=queue,
        data=data,
        run=run.directory,
        hostname=hostname,
        sink_host=sink_host,
        sink_port=sink_port,
        refusals=refusals,
    )
    extra = {"smtpd_milters": " ".join(milters), **(settings or {})}
    # Postfix warns of a setting that is there twice.
    lines = [line for line in text.splitlines(keepends=True) if line.partition("=")[0].strip() not in extra]
    main = config / "main.cf"
    main.write_text("".join([*lines, *(f"{key} = {value}\n" for key, value in extra.items())]))
    (config / "master.cf").write_text(MASTER.format(services=services))
    _age(config)
    # The check makes the queue's directories.  Its own log lines would wait for postlogd, which is not
    # there yet: hence the log file afterwards.
    checked = subprocess.run(
        (*run.prefix, "postfix", "-c", str(config), "check"), check=False, capture_output=True, text=True
    )
    if checked.returncode:
        raise ServiceError(f"postfix check: {checked.stderr}")
    with main.open("a") as settings_file:
        settings_file.write(f"maillog_file = {run.directory / name}-mail.log\n")
    _age(config)
    postfix = Postfix(run, name, port, config, queue)
    postfix.start()
    return postfix
