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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from manystream.data.statistics import StreamStatistics
from manystream.data.streams import StreamSpec
from manystream.data.table import Sample

FORMAT = 1
MARKER = "prepared.json"
INDEX = "index.json"
PARTIAL_SUFFIX = ".partial"


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
    shape: tuple[int, int, int, int]
    statistics: StreamStatistics

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StreamArray:
        """Undo ``asdict`` after a trip through JSON."""
        rows, height, width, channels = values["shape"]
        mean, std = (tuple(values["statistics"][name]) for name in ("mean", "std"))
        shape, spec = (rows, height, width, channels), StreamSpec(**values["spec"])
        return cls(spec, values["dtype"], shape, StreamStatistics(mean, std))

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
        return cls(
            values["split"],
            tuple(values["classes"]),
            tuple(values["ids"]),
            tuple(values["targets"]),
            None if values["groups"] is None else tuple(values["groups"]),
            tuple(tuple(bit == "1" for bit in word) for word in values["present"]),
            tuple(map(StreamArray.from_json, values["streams"])),
        )

    def files(self, folder: Path) -> list[Path]:
        """Return the file of each stream in a split's folder."""
        names = [re.sub(r"[^A-Za-z0-9_-]", "_", array.spec.name) for array in self.streams]
        return [folder / f"{number}-{name}.npy" for number, name in enumerate(names)]

    def samples(
        self, part: int, numbers: Mapping[str, int], classes: Sequence[str], folder: Path
    ) -> list[Sample]:
        """List the samples; a cell is the number of this part and a row of its file.

        Args:
            part: its number.
            numbers: numbers of the streams that are used, by name.
            classes: the only ones that samples may be of.
            folder: what messages are about.

        Raises:
            ValueError: if no sample has any of the streams, or one is of another class.
        """
        present = np.array(self.present, bool)
        if not present[:, list(numbers.values())].any():
            raise ValueError(f"no sample of {folder} has any of: {', '.join(numbers)}")
        labels = [self.classes[target] for target in self.targets]
        if unknown := sorted(set(labels) - set(classes)):
            raise ValueError(
                f"{folder} has classes that training lacks: {', '.join(unknown)}; "
                f"expected only {', '.join(classes)}"
            )
        rows = (np.cumsum(present, axis=0) - 1).tolist()
        cells = [
            {name: (part, of[m]) for name, m in numbers.items() if has[m]}
            for of, has in zip(rows, self.present, strict=True)
        ]
        groups, splits = self.groups or [""] * len(labels), [self.split] * len(labels)
        return list(map(Sample, self.ids, cells, labels, splits, groups))


def is_prepared(root: str | Path | None) -> bool:
    """Tell whether a folder is, or is about to become, a prepared set."""
    return root is not None and (Path(root) / MARKER).is_file()


def read_marker(root: Path) -> tuple[str, ...]:
    """Return the splits that a prepared set has or will have.

    Raises:
        ValueError: if the set was written by another version.
    """
    path = root / MARKER
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found, splits = values["format"], tuple(values["splits"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "it does not describe a prepared set") from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}; expected {FORMAT}: prepare the set again")
    return splits


def write_marker(root: Path, splits: Sequence[str]) -> None:
    """Make a folder a prepared set."""
    root.mkdir(parents=True, exist_ok=True)
    values = {"format": FORMAT, "splits": list(splits)}
    _write_atomically(root / MARKER, json.dumps(values) + "\n")


def write_index(folder: Path, index: SplitIndex, checksums: Sequence[Sequence[int]]) -> None:
    """Write a split's index with the CRC-32 of every row of every stream."""
    content = {**index.to_json(), "checksums": [list(rows) for rows in checksums]}
    sealed = {"format": FORMAT, "sha256": _digest(content), "content": content}
    _write_atomically(folder / INDEX, json.dumps(sealed, allow_nan=False) + "\n")


def read_index(folder: Path) -> tuple[SplitIndex, list[np.ndarray]]:
    """Read a split's index, and for each stream the CRC-32 of its rows, shape (B_m,), uint32.

    Raises:
        ValueError: if the file is missing, damaged or of another format, or of another split than
            its folder.
    """
    path = folder / INDEX
    try:
        sealed = json.loads(path.read_text(encoding="utf-8"))
        content = sealed["content"]
        if sealed["format"] != FORMAT or sealed["sha256"] != _digest(content):
            raise ValueError("its checksum is wrong")
        checksums = [np.array(rows, np.uint32) for rows in content["checksums"]]
        index = SplitIndex.from_json(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if index.split != folder.name:
        raise ValueError(
            f"{folder} was written as split {index.split!r}; give folders of a prepared set "
            "their own names back"
        )
    return index, checksums


def checksum(row: np.ndarray) -> int:
    """Return the CRC-32 of an image's bytes."""
    view: Any = row.reshape(-1).view(np.uint8)
    return zlib.crc32(view)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _damaged(path: Path, what: object) -> ValueError:
    return ValueError(
        f"the prepared set is damaged: {path}: {what}; remove the folder {path.parent} and run "
        "`manystream prepare` again"
    )
