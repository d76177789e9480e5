"""The command line: parse, call, print."""

import sys
from collections.abc import Sequence

from manystream.extras import MissingExtraError, train_extra

__all__ = ["main"]

try:
    with train_extra():
        from manystream.cli.main import main
except MissingExtraError as missing:
    _message = f"error: {missing}\n"

    def main(arguments: Sequence[str] | None = None) -> int:
        """Say what to install, and give the exit status of what cannot be run."""
        sys.stderr.write(_message)
        return 2
