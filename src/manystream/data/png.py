"""The checksum of every chunk of a PNG file, which Pillow does not compare for the pixels."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import IO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LAST = b"IEND"
_AT_ONCE_BYTES = 2**20


def check_chunks(path: Path) -> None:
    """Compare every chunk of a PNG file with its CRC-32, up to the last one.

    Raises:
        ValueError: if it is no PNG, a chunk is not what was written, or the last one is not there.
    """
    with path.open("rb") as file:
        if file.read(len(_SIGNATURE)) != _SIGNATURE:
            raise ValueError("it does not begin as a PNG does")
        while _check_chunk(file) != _LAST:
            pass


def _check_chunk(file: IO[bytes]) -> bytes:
    """Read a chunk, and give its name."""
    left, name = _number(file), _exactly(file, 4)
    checksum = zlib.crc32(name)
    while left > 0:  # Not at once: a damaged length may claim 4 GiB.
        part = _exactly(file, min(left, _AT_ONCE_BYTES))
        checksum, left = zlib.crc32(part, checksum), left - len(part)
    if checksum != _number(file):
        raise ValueError(f"the checksum of its chunk {name.decode('latin-1')!r} does not match")
    return name


def _number(file: IO[bytes]) -> int:
    return int.from_bytes(_exactly(file, 4), "big")


def _exactly(file: IO[bytes], length: int) -> bytes:
    read = file.read(length)
    if len(read) < length:
        raise ValueError("it is truncated: it ends before its last chunk")
    return read
