"""The command line as `python -m innervoice`."""

from __future__ import annotations

import sys

from innervoice.tools.cli.__main__ import start

if __name__ == "__main__":
    sys.exit(start())
