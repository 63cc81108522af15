"""`python -m integration.install` (or `python integration/install.py`): Debian's packages, if missing."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from integration.services.packages import install

if __name__ == "__main__":
    sys.exit(install())
