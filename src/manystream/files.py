"""Write files whole, or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Provide a path to write to, which takes a file's name when all of it is on disk.

    Whoever reads the file sees the old one or the new one, also after a crash or a loss of power.

    Args:
        path: the file.

    Raises:
        OSError: if the disk does not take it; the old file is untouched.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "numbers.txt"
        >>> with replacing(path) as partial:
        ...     _ = partial.write_text("1, 2, 3")
        >>> path.read_text()
        '1, 2, 3'
    """
    partial = partial_of(path)
    try:
        yield partial
        _reach_disk(partial)
        partial.replace(path)
        _reach_disk(path.parent)
    except BaseException:
        with suppress(OSError):  # the error that led here says more
            partial.unlink(missing_ok=True)
        raise


def partial_of(path: Path) -> Path:
    """Say where a file is written before it takes its name."""
    return path.with_name(f".{path.name}.partial")


def _reach_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a loss of power."""
    if sys.platform == "win32":  # which has no such call for a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
