"""The README's code blocks: what users are told is what is run. As a program: print the N-th command."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def blocks(kind: str, section: str = "") -> list[str]:
    """The contents of all code blocks of that kind in the README, or under one of its headings, in order."""
    text = README.read_text(encoding="utf-8")
    if section:
        _, _, text = text.partition(f"\n## {section}\n")
        text, _, _ = text.partition("\n## ")
    found = re.findall(rf"^```{re.escape(kind)}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block.strip() for block in found]


def filled(text: str, places: Mapping[str, object]) -> str:
    """A text of the README with other ports and paths, each of which must be in it.

    Raises:
        ValueError: one is not; the README now says something else.
    """
    for old, new in places.items():
        if old not in text:
            raise ValueError(f"the README does not say {old!r} here:\n{text}")
        text = text.replace(old, str(new))
    return text


if __name__ == "__main__":
    print(blocks("sh")[int(sys.argv[1]) - 1])
