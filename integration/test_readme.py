"""The two commands at the top of the README, on a copy of the tree, in a shell that has only Python."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from integration.corpus import head
from integration.services.process import Run, Service, answers
from integration.services.smtp import Client

ROOT = Path(__file__).resolve().parents[1]
INSTALL_TIMEOUT = 600.0
ADDRESS = "127.0.0.1:2525"

pytestmark = pytest.mark.timeout(1800)


def _command(number: int) -> str:
    return subprocess.run(
        (sys.executable, ROOT / "integration" / "readme.py", str(number)),
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


@pytest.fixture
def tree(run: Run, request: pytest.FixtureRequest) -> Path:
    """What git knows of the tree, as it is now."""
    copy: Path = run.directory / request.node.name / "milterchain"
    copy.mkdir(parents=True)
    listed = subprocess.run(
        ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if source.is_file():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return copy


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """No virtual environment, no settings of the tests; `python3` is the interpreter that runs this."""
    keep = ("HOME", "LANG", "TERM", "TMPDIR")
    kept = {name: value for name, value in os.environ.items() if name in keep or name.startswith("PIP_")}
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "http_proxy", "https_proxy", "no_proxy"):
        if name in os.environ:
            kept[name] = os.environ[name]
    return kept


@pytest.fixture
def path_with_python(tmp_path: Path, environment: dict[str, str]) -> dict[str, str]:
    """The base interpreter of this environment first in the path, whatever the machine's own is."""
    base = Path(sys.base_prefix) / "bin" / "python3"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(base)
    return {**environment, "PATH": f"{tmp_path / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"}


def test_there_are_two_commands_of_one_line() -> None:
    for number in (1, 2):
        assert _command(number)
        assert "\n" not in _command(number)


def test_the_first_command_carries_mail(run: Run, tree: Path, path_with_python: dict[str, str]) -> None:
    assert not answers(f"inet:{ADDRESS}"), f"something else listens on {ADDRESS}"
    log = run.directory / "readme-run.log"
    # In a shell of its own, as a reader would type it.
    service = Service("readme", ("sh", "-c", _command(1)), log=log, directory=tree, env=path_with_python)
    try:
        service.wait_ready(lambda: answers(f"inet:{ADDRESS}"), INSTALL_TIMEOUT)
        with Client(ADDRESS) as client:
            outcome = client.send(
                b"<a@example.test>", [b"<b@example.test>"], head("readme") + b"\r\nbody\r\n"
            )
            client.quit()
        assert outcome.accepted, outcome
        delivered = list((tree / "milterchain-mail" / "new").iterdir())
        assert len(delivered) == 1
        assert b"Subject: readme" in delivered[0].read_bytes()
        service.signal_group(signal.SIGINT)
        service.wait(60)
    finally:
        service.kill()


def test_the_second_command_passes(tree: Path, path_with_python: dict[str, str]) -> None:
    done = subprocess.run(
        ("sh", "-c", _command(2)),
        cwd=tree,
        env=path_with_python,
        check=False,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
