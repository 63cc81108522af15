"""docker-compose.yml: Docker Compose can read it, and its services do together what the README says."""

import shlex
import subprocess
import sys

import pytest

from integration.readme import blocks
from integration.services.compose import (
    MILTERCHAIN,
    ROOT,
    Composed,
    compose,
    output_of,
    read_document,
    read_images,
)
from integration.services.filters import GTUBE
from integration.services.process import Run

UP, SEND, SHOW = blocks("compose")[0].splitlines()


@pytest.fixture(scope="module")
def composed(run: Run) -> Composed:
    if subprocess.run(("unshare", "--net", "--mount", "true"), check=False, capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    return compose(run, read_images(read_document()))


def inside(line: str) -> tuple[str, ...]:
    """The command of `docker compose exec SERVICE COMMAND`."""
    docker, plugin, verb, service, *command = shlex.split(line)
    assert (docker, plugin, verb) == ("docker", "compose", "exec")
    assert service in read_document()["services"]
    return tuple(command)


def send(composed: Composed, line: str = SEND) -> str:
    """Send a message with the README's line; what was said about it."""
    _, option, code = inside(line)
    attempt = f"import smtplib\ntry:\n    {code}\nexcept smtplib.SMTPException as error:\n    print(error)"
    return composed.execute(sys.executable, option, attempt)


def test_only_milterchain_is_reached_and_only_from_this_machine() -> None:
    services = read_document()["services"]
    assert set(services) == {"milterchain", "opendkim", "rspamd", "postfix"}
    ports = {name: service.get("ports", []) for name, service in services.items()}
    assert [str(port) for port in ports.pop("milterchain")] == ["127.0.0.1:2525:2525/tcp"]
    assert not any(ports.values())


def test_volumes_are_where_something_is_kept() -> None:
    document = read_document()
    used = {volume.split(":")[0] for one in document["services"].values() for volume in one["volumes"]}
    assert used == set(document["volumes"])


def test_the_readme_starts_what_is_in_the_file() -> None:
    assert UP == "docker compose up --build --detach"
    assert (ROOT / "docker-compose.yml").exists()


def test_a_message_arrives_signed_and_rated(composed: Composed) -> None:
    assert send(composed) == ""
    arrived = output_of(composed, *inside(SHOW))
    assert "\nHello\n" in arrived
    assert "DKIM-Signature: " in arrived
    assert " d=example.org; s=try;" in arrived
    assert "X-Spam-Status: " in arrived
    assert "by mx.example.org (milterchain) with ESMTP" in arrived


def test_spam_is_refused(composed: Composed) -> None:
    assert "554" in send(composed, SEND.replace("Hello", GTUBE.decode().rstrip()))


def test_postfix_decides_who_gets_mail_and_who_may_relay(composed: Composed) -> None:
    unknown = send(composed, SEND.replace("you@", "nobody@"))
    assert "550" in unknown
    assert "User unknown in virtual mailbox table" in unknown
    assert "Relay access denied" in send(composed, SEND.replace("you@example.org", "you@example.com"))


def test_the_milters_answer(composed: Composed) -> None:
    shown = composed.execute(*MILTERCHAIN, "check", "-c", "/etc/milterchain/milterchain.toml")
    for name in ("opendkim", "rspamd", "postfix"):
        assert name in shown
