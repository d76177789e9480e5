"""What a prepared set looks like on disk.

    root/prepared.json              format and splits, written first
    root/<split>/index.json         samples, streams, statistics, checksums; written last
    root/<split>/<m>-<stream>.npy   present rows of stream m, shape (B_m, H, W, C)
    root/<split>.partial/           a split that is being written

A folder gets its split's name only when everything in it has been written, so an interrupted
split cannot be taken for a whole one.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from manystream.data.statistics import StreamStatistics
from manystream.data.streams import StreamSpec
from manystream.data.table import SampleTable

FORMAT = 1
MARKER = "prepared.json"
INDEX = "index.json"
PARTIAL_SUFFIX = ".partial"

Index = dict[str, Any]
"""All of a split but its pixels, as :func:`describe` gives it, and the checksums of its rows."""


@dataclass(frozen=True)
class StreamArray:
    """The array of one stream: a ``.npy`` file, made in full length and filled by rows.

    Attributes:
        spec: the stream.
        dtype: of the pixels, as NumPy writes it: ``"uint8"``, ``"uint16"`` or ``"float32"``.
        shape: (B_m, H, W, C).
        statistics: mean and standard deviation over the valid pixels of the source's images.
    """

    spec: StreamSpec
    dtype: str
    shape: tuple[int, ...]
    statistics: StreamStatistics

    @property
    def total_bytes(self) -> int:
        """Size of all images, without the file's header."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def header(self) -> bytes:
        """What stands in the file before the images."""
        file, descr = BytesIO(), np.lib.format.dtype_to_descr(np.dtype(self.dtype))
        header = {"descr": descr, "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(file, header)
        return file.getvalue()

    def path(self, folder: Path, number: int) -> Path:
        """Return the file of stream ``number`` in a split's folder."""
        return folder / f"{number}-{re.sub(r'[^A-Za-z0-9_-]', '_', self.spec.name)}.npy"

    def map(self, path: Path) -> np.ndarray:
        """Map a file, shape (B_m, H, W, C), read-only.

        Raises:
            ValueError: if its length, dtype or shape is not what is expected.
        """
        expected = len(self.header) + self.total_bytes
        try:
            if (found := path.stat().st_size) != expected:
                raise ValueError(f"it has {found} bytes; expected {expected}")
            # A file without a row cannot be mapped.
            mapped = np.asarray(np.load(path, mmap_mode="r" if self.shape[0] else None))
            if mapped.shape != self.shape or mapped.dtype != self.dtype:
                raise ValueError(
                    f"it holds {mapped.dtype} of shape {mapped.shape}; "
                    f"expected {self.dtype} of shape {self.shape}"
                )
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        return mapped


def describe(table: SampleTable, split: str, arrays: Sequence[StreamArray]) -> Index:
    """Describe a split in plain values, with presence as words of 0 and 1."""
    return {
        "split": split,
        "classes": list(table.classes),
        "ids": list(table.ids),
        "targets": table.targets.tolist(),
        "groups": None if table.groups is None else list(table.groups),
        "present": ["".join("01"[has] for has in row) for row in table.present.tolist()],
        "streams": [asdict(array) for array in arrays],
    }


def arrays_of(index: Index) -> list[StreamArray]:
    """Return the arrays of the streams that an index describes."""
    return [
        StreamArray(
            StreamSpec(**of["spec"]),
            of["dtype"],
            tuple(of["shape"]),
            StreamStatistics(*(tuple(of["statistics"][name]) for name in ("mean", "std"))),
        )
        for of in index["streams"]
    ]


def checksum(row: np.ndarray) -> int:
    """Return the CRC-32 of an image's bytes."""
    view: Any = row.reshape(-1).view(np.uint8)
    return zlib.crc32(view)


def is_prepared(root: str | Path | None) -> bool:
    """Tell whether a folder is, or is about to become, a prepared set."""
    return root is not None and (Path(root) / MARKER).is_file()


def read_marker(root: Path) -> list[str]:
    """Return the splits that a prepared set has or will have.

    Raises:
        ValueError: if the set was written by another version.
    """
    path = root / MARKER
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found, splits = values["format"], list(values["splits"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "it does not describe a prepared set") from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}; expected {FORMAT}: prepare the set again")
    return splits


def write_marker(root: Path, splits: Sequence[str]) -> None:
    """Make a folder a prepared set."""
    root.mkdir(parents=True, exist_ok=True)
    _write_atomically(root / MARKER, {"format": FORMAT, "splits": list(splits)})


def read_index(folder: Path) -> Index:
    """Read a split's index.

    Raises:
        ValueError: if the file is missing, damaged or of another format, or of another split than
            its folder.
    """
    path = folder / INDEX
    try:
        sealed = json.loads(path.read_text(encoding="utf-8"))
        index: Index = sealed["content"]
        if sealed["format"] != FORMAT or sealed["sha256"] != _digest(index):
            raise ValueError("its checksum is wrong")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if index["split"] != folder.name:
        raise ValueError(
            f"{folder} was written as split {index['split']!r}; give folders of a prepared set "
            "their own names back"
        )
    return index


def write_index(folder: Path, index: Index) -> None:
    """Write a split's index, ``"checksums"`` in it: of every row of every stream."""
    sealed = {"format": FORMAT, "sha256": _digest(index), "content": index}
    _write_atomically(folder / INDEX, sealed)


def _digest(content: Index) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_atomically(path: Path, values: dict[str, Any]) -> None:
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    partial.write_text(json.dumps(values, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _damaged(path: Path, what: object) -> ValueError:
    return ValueError(
        f"the prepared set is damaged: {path}: {what}; remove the folder {path.parent} and run "
        "`manystream prepare` again"
    )
