"""The services of docker-compose.yml without an engine: the images' files and commands, on this machine.

What the Dockerfiles copy is put where they put it, the directories are made that they make, and the commands
are theirs. All services share one private network with nothing but loopback, in which each is found by its
name, and private mounts, so that nothing of the system is changed. Not played are packages (those of this
machine are used), USER and volumes.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integration.services.filters import DEBIAN_PYTHON
from integration.services.process import Run, Service, ServiceError, wait_for

ROOT = Path(__file__).resolve().parents[2]
MILTERCHAIN = (sys.executable, "-c", "from milterchain.cli import main; main()")

OWNERS = {"/run": "root", "/srv": "root", "/var/spool/postfix": "root", "/var/lib/postfix": "postfix",
          "/var/lib/rspamd": "_rspamd"}  # fmt: skip
"""Directories that are empty in a new container, and whose they are."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a Dockerfile says.

    Attributes:
        name: of the service.
        copies: what is copied, relative to the context, and where to.
        directories: the `install -d` commands.
        ports: on which it listens.
        command: that the container runs.
    """

    name: str
    copies: tuple[tuple[Path, Path], ...]
    directories: tuple[str, ...]
    ports: tuple[int, ...]
    command: tuple[str, ...]


def read_document() -> dict[str, Any]:
    """The file as Docker Compose reads it, with all that it adds.

    Raises:
        ServiceError: it does not like something in it.
    """
    command = ("docker-compose", "--file", str(ROOT / "docker-compose.yml"), "config")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ServiceError(f"docker-compose: {done.stderr}")
    # docker-compose brings a YAML library for Debian's own Python.
    convert = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)"
    as_json = subprocess.run(
        (DEBIAN_PYTHON, "-c", convert), check=True, capture_output=True, text=True, input=done.stdout
    )
    document: dict[str, Any] = json.loads(as_json.stdout)
    return document


def read_images(document: dict[str, Any]) -> list[Image]:
    """The images of all services."""
    images = []
    for name, service in document["services"].items():
        context = Path(service["build"]["context"])
        images.append(read_image(name, context, context / service["build"].get("dockerfile", "Dockerfile")))
    return images


def read_image(name: str, context: Path, dockerfile: Path) -> Image:
    """Read a Dockerfile.

    Raises:
        ServiceError: something in it is not understood here, or what it copies is not there.
    """
    copies: list[tuple[Path, Path]] = []
    directories: list[str] = []
    ports: list[int] = []
    command: tuple[str, ...] = ()
    for line in dockerfile.read_text().splitlines():
        keyword, _, rest = line.partition(" ")
        match keyword:
            case "COPY":
                *sources, target = rest.split()
                copies += [_copied(context / source, target) for source in sources]
            case "RUN":
                directories += [rest] * rest.startswith("install -d ")
            case "EXPOSE":
                ports.append(int(rest))
            case "CMD":
                command = tuple(json.loads(rest))
            case "FROM" | "USER" | "":
                pass
            case _:
                raise ServiceError(f"{name}: what is {line!r}?")
    return Image(name, tuple(copies), tuple(directories), tuple(ports), command)


def _copied(source: Path, target: str) -> tuple[Path, Path]:
    """What is copied where: of a directory the content, and a file into what ends with a slash."""
    if not source.exists():
        raise ServiceError(f"there is no {source}")
    return source, Path(target) / source.name if target.endswith("/") else Path(target)


@dataclass(slots=True)
class Composed:
    """The services, running.

    Attributes:
        inside: put before a command, so that it runs where the services are.
    """

    run: Run
    inside: tuple[str, ...]
    services: dict[str, Service] = field(default_factory=dict)

    def execute(self, *command: str) -> str:
        """Run a command inside; what it printed."""
        done = subprocess.run(
            (*self.inside, *command),
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=_environment(),
        )
        if done.returncode:
            raise ServiceError(f"{shlex.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def answers(self, port: int) -> bool:
        """Whether somebody listens inside."""
        probe = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
        done = subprocess.run((*self.inside, sys.executable, "-c", probe), check=False, capture_output=True)
        return done.returncode == 0


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def compose(run: Run, images: list[Image]) -> Composed:
    """Start all of them."""
    etc = run.directory / "etc"
    shutil.copytree("/etc", etc, symlinks=True)
    (etc / "hosts").write_text(f"127.0.0.1 localhost {' '.join(image.name for image in images)}\n")
    (etc / "resolv.conf").unlink()
    (etc / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    elsewhere: list[tuple[Path, Path]] = []
    for image in images:
        for source, target in image.copies:
            if target.is_relative_to("/etc"):
                place = etc / target.relative_to("/etc")
                place.parent.mkdir(exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, place, dirs_exist_ok=True)
                else:
                    shutil.copy(source, place)
            elif not target.is_relative_to("/src"):
                elsewhere.append((source, target))
    mounts = [f"ip link set lo up && mount --bind {shlex.quote(str(etc))} /etc"]
    mounts += [
        f"mount -t tmpfs -o mode=755 tmpfs {path} && chown {owner} {path}" for path, owner in OWNERS.items()
    ]
    mounts += [command for image in images for command in image.directories if "milterchain" not in command]
    # There is no user of that name on this machine.
    mounts += ["install -d /srv/milterchain", "echo ready", "exec sleep infinity"]
    unshare = ("unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")
    holder = run.spawn("holder", (*unshare, "--mount-proc", "sh", "-ec", "\n".join(mounts)))
    holder.wait_ready(lambda: "ready" in holder.tail())
    # The first process inside: with it all others end, also those that leave their group as Postfix does.
    first = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()[0]
    composed = Composed(run, ("nsenter", "-t", first, "--net", "--mount", "--pid"))
    commands = {str(target): str(source) for source, target in elsewhere}
    records = (
        "--no-hosts",
        "--no-resolv",
        "--local=/#/",
        "--user=root",
        "--pid-file=",
        "--conf-file=/dev/null",
    )
    run.spawn("names", (*composed.inside, "dnsmasq", "--keep-in-foreground", "--log-facility=-", *records))
    for image in images:
        argv = [commands.get(word, word) for word in image.command]
        if argv[0] == "milterchain":
            argv[:1] = MILTERCHAIN
        service = run.spawn(image.name, (*composed.inside, *argv), env=_environment())
        composed.services[image.name] = service
    for image in images:
        service = composed.services[image.name]
        for port in image.ports:
            service.wait_ready(lambda port=port: composed.answers(port))  # type: ignore[misc]
    return composed


def output_of(composed: Composed, *command: str) -> str:
    """Run a command inside until it succeeds and prints something."""

    def attempt() -> str:
        try:
            return composed.execute(*command)
        except ServiceError:
            return ""

    return wait_for(attempt, shlex.join(command))
