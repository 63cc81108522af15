"""Imports point one way; each part knows only what lies below it.

The tables are complete: every module is in a part, and what a part does not list it may not import, also not
inside a function or for types only.
"""

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import milterchain

ROOT = Path(milterchain.__file__).parent

PARTS = {
    # The first pattern that fits decides.
    "milterchain": "package",
    "milterchain.errors": "errors",
    "milterchain.config*": "config",
    "milterchain.metrics": "metrics",
    "milterchain.milter.endpoint": "milter.endpoint",
    "milterchain.milter.client*": "milter.client",
    "milterchain.milter.content*": "milter.client",
    "milterchain.milter.link": "milter.client",
    "milterchain.milter.mta": "milter.client",
    "milterchain.milter.server*": "milter.server",
    "milterchain.milter.filter": "milter.server",
    "milterchain.milter.modifier": "milter.server",
    "milterchain.milter": "milter",
    "milterchain.milter*": "milter.core",
    "milterchain.mailfilter*": "mailfilter",
    "milterchain.mail*": "mail",
    "milterchain.chain*": "chain",
    "milterchain.smtp*": "smtp",
    "milterchain.proxy.nexthop": "nexthop",
    "milterchain.proxy*": "proxy",
    "milterchain.cli*": "cli",
    "milterchain.__main__": "cli",
    "milterchain.testing*": "testing",
}

ALLOWED = {
    "package": "",
    "errors": "",
    "milter.core": "errors",
    "milter.endpoint": "errors milter.core",
    "milter.client": "errors milter.core milter.endpoint",
    "milter.server": "errors milter.core milter.endpoint",
    "milter": "errors milter.core milter.endpoint milter.client milter.server",
    "mail": "errors milter.core",
    "mailfilter": "errors milter.core milter.endpoint milter.server mail",
    "chain": "package errors milter.core milter.endpoint milter.client mail",
    "smtp": "package errors mail",
    "nexthop": "errors smtp mail",
    "config": "errors milter.core milter.endpoint nexthop",
    "metrics": "package errors",
    "proxy": (
        "package errors milter.core milter.endpoint milter.client milter.server"
        " mail chain smtp nexthop config metrics"
    ),
    "cli": (
        "package errors milter.core milter.endpoint milter.client milter.server"
        " mail chain smtp nexthop config metrics proxy"
    ),
    "testing": "errors milter.core milter.endpoint milter.client milter.server mail mailfilter chain smtp",
}
"""What each part may import, besides itself. `milter` is the package's front, for users of the library."""

SANS_IO = {"milter.core", "mail", "errors", "config", "nexthop"}
"""Parts that open no connection and start no task."""
IO_MODULES = {"asyncio", "selectors", "socket", "ssl", "threading"}
NAMES_ONLY = {("config", "socket")}
"""`config` asks for the name of this host."""


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def part_of(module: str) -> str:
    return next(part for pattern, part in PARTS.items() if fnmatchcase(module, pattern))


MODULES = dict(modules())


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


@pytest.mark.parametrize("module", MODULES)
def test_each_module_imports_only_what_lies_below(module: str) -> None:
    part = part_of(module)
    allowed = {part, *ALLOWED[part].split()}
    wrong = {
        name
        for name in imports(MODULES[module])
        if name.split(".")[0] == "milterchain" and part_of(name) not in allowed
    }
    assert not wrong, f"{module} ({part}) must not import {sorted(wrong)}"


@pytest.mark.parametrize("module", [module for module in MODULES if part_of(module) in SANS_IO])
def test_sans_io_parts_do_no_io(module: str) -> None:
    used = {name.split(".")[0] for name in imports(MODULES[module])} & IO_MODULES
    assert not {name for name in used if (part_of(module), name) not in NAMES_ONLY}


def test_the_tables_have_no_circle() -> None:
    below: dict[str, set[str]] = {part: set(names.split()) for part, names in ALLOWED.items()}
    while below:
        bottom = {part for part, names in below.items() if not names}
        assert bottom, f"a circle among {sorted(below)}"
        below = {part: names - bottom for part, names in below.items() if part not in bottom}


def test_each_part_is_in_the_tables() -> None:
    assert set(PARTS.values()) == set(ALLOWED)
