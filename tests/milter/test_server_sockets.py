"""Unix sockets to listen on: whom they belong to."""

import grp
import os
import pwd
import stat
from pathlib import Path

import pytest

from milterchain.errors import MilterConnectError
from milterchain.milter.endpoint import Endpoint
from milterchain.milter.filter import Milter
from milterchain.milter.server import Listener, MilterServer
from milterchain.milter.server_sockets import UnixSocketFile

UID, GID = os.getuid(), os.getgid()
ME = pwd.getpwuid(UID).pw_name
MINE = grp.getgrgid(GID).gr_name


@pytest.fixture
def chowned(monkeypatch):
    """What the system was asked to do: only root may really do it."""
    calls = []
    monkeypatch.setattr(os, "chown", lambda path, user, group: calls.append((str(path), user, group)))
    return calls


@pytest.mark.parametrize(
    ("owner", "group", "expected"),
    [
        (None, None, None),
        (ME, None, (UID, -1)),
        (None, MINE, (-1, GID)),
        (ME, MINE, (UID, GID)),
        ("12", "34", (12, 34)),
        (12, 34, (12, 34)),
        (0, 0, (0, 0)),
    ],
)
def test_users_and_groups(tmp_path, chowned, owner, group, expected):
    path = f"{tmp_path}/s"
    file = UnixSocketFile(path, 0o660, owner, group)
    file.socket.close()
    assert chowned == ([] if expected is None else [(path, *expected)])
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o660


async def test_a_listener_with_an_owner(tmp_path):
    listener = Listener(Endpoint(path=f"{tmp_path}/s"), mode=0o600, owner=ME, group=GID)
    async with MilterServer(Milter, [listener]):
        found = (tmp_path / "s").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (UID, GID, 0o600)


@pytest.mark.parametrize("names", [{"owner": "no-such-user"}, {"group": "no-such-group"}])
async def test_names_that_nobody_has(tmp_path, names):
    server = MilterServer(Milter, [Listener(f"unix:{tmp_path}/s", **names)])
    (name,) = names.values()
    with pytest.raises(
        MilterConnectError, match=f"cannot listen on unix:.*/s: no such user or group: .*{name}"
    ):
        await server.start()
    assert not (tmp_path / "s").exists()


async def test_owners_that_the_system_refuses(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(MilterConnectError, match=r"cannot listen on unix:.*: Operation not permitted"):
        await MilterServer(Milter, [Listener(f"unix:{tmp_path}/s", owner=0)]).start()
