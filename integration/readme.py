"""Print the N-th shell command block of the README, so that what users are told is what is run."""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def shell_blocks(text: str) -> list[str]:
    """The contents of all ```sh blocks, in order."""
    return [block.strip() for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


if __name__ == "__main__":
    print(shell_blocks(README.read_text(encoding="utf-8"))[int(sys.argv[1]) - 1])
