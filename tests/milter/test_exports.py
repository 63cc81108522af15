import ast
from pathlib import Path

import pytest

from milterchain import milter

MODULES = sorted(Path(milter.__file__).parent.glob("*.py"))


def test_the_names_for_users():
    assert {"Connection", "MilterServer", "MilterSession", "Milter", "Modifier", "parse_endpoint"} <= set(
        milter.__all__
    )
    assert all(hasattr(milter, name) for name in milter.__all__)


def test_every_message_is_exported():
    assert {name for name in milter.messages.__all__ if name[0].isupper()} <= set(milter.__all__)


CORE = {"framing", "macros", "negotiation", "state", "connection", "flags", "messages", "payloads"}
CORE |= {"commands", "responses", "readable", "reply_text", "macro_bag", "chunking", "answers"}


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem in CORE], ids=lambda path: path.stem)
def test_the_core_does_no_io(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert not imported & {"asyncio", "socket", "ssl", "selectors", "threading", "logging", "time"}
    own = {name for name in imported if name.startswith("milterchain")}
    assert own <= {"milterchain.errors", *(f"milterchain.milter.{stem}" for stem in CORE)}
