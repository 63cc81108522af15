"""Print the N-th shell command block of the README, so that what users are told is what is run."""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def blocks(kind: str) -> list[str]:
    """The contents of all code blocks of that kind in the README, in order."""
    text = README.read_text(encoding="utf-8")
    found = re.findall(rf"^```{re.escape(kind)}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block.strip() for block in found]


if __name__ == "__main__":
    print(blocks("sh")[int(sys.argv[1]) - 1])
