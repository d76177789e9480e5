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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np

from manystream.data.statistics import StreamStatistics
from manystream.data.streams import StreamSpec

FORMAT = 1
MARKER = "prepared.json"
INDEX = "index.json"
PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True)
class StreamArray:
    """The array of one stream.

    Attributes:
        spec: the stream.
        dtype: of the pixels, as NumPy writes it: ``"uint8"``, ``"uint16"`` or ``"float32"``.
        shape: (B_m, H, W, C).
        statistics: mean and standard deviation over the valid pixels of the source's images.
    """

    spec: StreamSpec
    dtype: str
    shape: tuple[int, int, int, int]
    statistics: StreamStatistics

    @property
    def row_bytes(self) -> int:
        """Size of one image."""
        return int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize

    @property
    def total_bytes(self) -> int:
        """Size of all images, without the file's header."""
        return self.shape[0] * self.row_bytes


@dataclass(frozen=True)
class SplitIndex:
    """All of a split but its pixels.

    Attributes:
        split: its name.
        classes: class names.
        ids: name of each of the N samples.
        targets: class of each sample.
        groups: recording or room of each sample; None where the source does not know it.
        present: which streams each sample has, N rows of M.
        streams: one array per stream.
    """

    split: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    targets: tuple[int, ...]
    groups: tuple[str, ...] | None
    present: tuple[tuple[bool, ...], ...]
    streams: tuple[StreamArray, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with presence as words of 0 and 1."""
        words = ["".join("01"[has] for has in row) for row in self.present]
        return {**asdict(self), "present": words}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SplitIndex:
        """Undo :meth:`to_json`, also after a trip through JSON."""
        groups = values["groups"]
        return cls(
            values["split"],
            tuple(values["classes"]),
            tuple(values["ids"]),
            tuple(values["targets"]),
            None if groups is None else tuple(groups),
            tuple(tuple(bit == "1" for bit in word) for word in values["present"]),
            tuple(map(_stream_from_json, values["streams"])),
        )

    def files(self, folder: Path) -> list[Path]:
        """Return the file of each stream in a split's folder."""
        names = [array.spec.name for array in self.streams]
        return [folder / name for name in starmap(_file_name, enumerate(names))]


def is_prepared(root: str | Path | None) -> bool:
    """Tell whether a folder is, or is about to become, a prepared set."""
    return root is not None and (Path(root) / MARKER).is_file()


def read_marker(root: Path) -> tuple[str, ...]:
    """Splits that a prepared set has or will have.

    Raises:
        ValueError: if the set was written by another version.
    """
    path = root / MARKER
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found, splits = values["format"], tuple(values["splits"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, "it does not describe a prepared set") from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}; expected {FORMAT}: prepare the set again")
    return splits


def write_marker(root: Path, splits: Sequence[str]) -> None:
    """Make a folder a prepared set."""
    root.mkdir(parents=True, exist_ok=True)
    values = {"format": FORMAT, "splits": list(splits)}
    write_atomically(root / MARKER, json.dumps(values) + "\n")


def write_index(folder: Path, index: SplitIndex, checksums: Sequence[Sequence[int]]) -> None:
    """Write a split's index with the CRC-32 of every row of every stream."""
    content = {**index.to_json(), "checksums": [list(rows) for rows in checksums]}
    sealed = {"format": FORMAT, "sha256": _digest(content), "content": content}
    write_atomically(folder / INDEX, json.dumps(sealed, allow_nan=False) + "\n")


def read_index(folder: Path) -> tuple[SplitIndex, list[np.ndarray]]:
    """Read what :func:`write_index` wrote.

    Returns:
        The index, and for each stream the CRC-32 of its rows, shape (B_m,), uint32.

    Raises:
        ValueError: if the file is missing, damaged or of another format.
    """
    path = folder / INDEX
    try:
        sealed = json.loads(path.read_text(encoding="utf-8"))
        content = sealed["content"]
        if sealed["format"] != FORMAT or sealed["sha256"] != _digest(content):
            raise ValueError("its checksum is wrong")
        checksums = [np.array(rows, np.uint32) for rows in content["checksums"]]
        return SplitIndex.from_json(content), checksums
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, what: str) -> ValueError:
    """Return an error about a file of a prepared set."""
    return ValueError(
        f"the prepared set is damaged: {path}: {what}; remove the folder {path.parent} and run "
        "`manystream prepare` again"
    )


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_name(number: int, stream: str) -> str:
    return f"{number}-{re.sub(r'[^A-Za-z0-9_-]', '_', stream)}.npy"


def _stream_from_json(values: Mapping[str, Any]) -> StreamArray:
    rows, height, width, channels = values["shape"]
    statistics = values["statistics"]
    return StreamArray(
        StreamSpec(**values["spec"]),
        values["dtype"],
        (rows, height, width, channels),
        StreamStatistics(tuple(statistics["mean"]), tuple(statistics["std"])),
    )
