"""The command line from its first import on: Ctrl-C has the exit code 130 there too, and no traceback."""

from __future__ import annotations

import sys


def start() -> int:
    """Run the process's command; returns its exit code."""
    try:
        from innervoice.tools.cli.main import main
    except KeyboardInterrupt:
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(start())
