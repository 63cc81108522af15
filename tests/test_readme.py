"""The README's snippets do what it says."""

import asyncio
import re
import tomllib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from milterchain.config import parse
from milterchain.milter import Content, MilterServer, MilterSession, parse_endpoint
from milterchain.milter.messages import ChangeHeader, Connect, Helo, Mail, Rcpt

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", blocks("toml"))
def test_configurations_are_valid(document: str, tmp_path: Path) -> None:
    parse(tomllib.loads(document), "README.md", tmp_path)


def test_defaults_are_what_the_readme_says(tmp_path: Path) -> None:
    document = tomllib.loads(next(block for block in blocks("toml") if "[limits]" in block))
    milter = document["milter"][0]
    minimal = {"hostname": document["hostname"], "milter": [{"address": milter["address"]}]}
    shown = parse(document, "README.md", tmp_path)
    default = parse(minimal, "README.md", tmp_path)
    named = {"name": milter["name"], "macros": shown.milter[0].macros}
    assert shown == default.model_copy(update={"milter": (default.milter[0].model_copy(update=named),)})


def test_the_filter_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(coroutine: Coroutine[Any, Any, None]) -> None:
        coroutine.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(asyncio, "run", interrupted)
    exec(compile(blocks("python")[0], "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(
    ("sender", "edits"),
    [
        (b"<a@example.com>", (ChangeHeader(1, b"Subject", b"[EXTERNAL] hello"),)),
        (b"<a@EXAMPLE.org>", ()),
    ],
)
async def test_the_filter_tags_mail_from_outside(
    sender: bytes, edits: tuple[ChangeHeader, ...], tmp_path: Path
) -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(blocks("python")[0], "README.md", "exec"), names)
    endpoint = f"unix:{tmp_path}/external.sock"
    envelope = [Connect(hostname=b"localhost"), Helo(b"client"), Mail(sender), Rcpt(b"<b@example.org>")]
    async with asyncio.timeout(20), MilterServer(names["External"], [endpoint]):
        session = await MilterSession.open(parse_endpoint(endpoint))
        for command in envelope:
            if (reply := session.command(command)) is not None:
                await reply
        content = Content(headers=[(b"Subject", b" hello")], body=lambda _: [b"Hi\r\n"], body_size=4)
        result = await session.content(content, pipelined=False)
        await session.quit()
    assert result.edits == edits
