"""The file of one stream: a ``.npy`` array made in full length, filled by rows, then mapped."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from manystream.data.prepared.layout import StreamArray, damaged


def create_array(path: Path, array: StreamArray) -> None:
    """Make a stream's file in its full length, without pixels; it takes no room on disk yet."""
    with path.open("wb") as file:
        _write_header(file, array)
        file.truncate(file.tell() + array.total_bytes)


def write_rows(path: Path, array: StreamArray, first: int, rows: np.ndarray) -> None:
    """Write images into a stream's file.

    Args:
        path: the file.
        array: what it holds.
        first: row that the first image becomes.
        rows: shape (K, H, W, C).
    """
    # Written, not mapped: on a full disk a mapped page ends the process without a word.
    with path.open("r+b") as file:
        file.seek(_header_bytes(array) + first * array.row_bytes)
        file.write(np.ascontiguousarray(rows).data)


def map_array(path: Path, array: StreamArray) -> np.ndarray:
    """Map a stream's file, shape (B_m, H, W, C), read-only.

    Raises:
        ValueError: if its length, dtype or shape is not what the index says.
    """
    expected = _header_bytes(array) + array.total_bytes
    try:
        found = path.stat().st_size
        if found != expected:
            raise ValueError(f"it has {found} bytes; expected {expected}")
        mapped = _map(path, array)
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    if mapped.shape != array.shape or mapped.dtype != array.dtype:
        raise damaged(
            path,
            f"it holds {mapped.dtype} of shape {mapped.shape}; "
            f"expected {array.dtype} of shape {array.shape}",
        )
    return mapped


def checksum(row: np.ndarray) -> int:
    """Return the CRC-32 of an image's bytes."""
    view: Any = row.reshape(-1).view(np.uint8)
    return zlib.crc32(view)


def _map(path: Path, array: StreamArray) -> np.ndarray:
    # A file without a row cannot be mapped.
    return np.asarray(np.load(path, mmap_mode="r" if array.shape[0] else None))


def _header_bytes(array: StreamArray) -> int:
    buffer = BytesIO()
    _write_header(buffer, array)
    return buffer.tell()


def _write_header(file: IO[bytes], array: StreamArray) -> None:
    descr = np.lib.format.dtype_to_descr(np.dtype(array.dtype))
    header = {"descr": descr, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, header)
