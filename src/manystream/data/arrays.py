"""A data set that is in memory already: one array of images per stream."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from manystream.data.splitting import TRAIN
from manystream.data.streams import StreamKind, described
from manystream.data.table import ArrayTable, Column, Sample, take_rows

_DTYPES = ("uint8", "uint16", "float32")


def arrays(
    images: Mapping[str, np.ndarray],
    labels: Sequence[str] | Sequence[int] | np.ndarray,
    *,
    present: Mapping[str, Sequence[bool] | np.ndarray] | None = None,
    classes: Sequence[str] | None = None,
    kinds: Mapping[str, StreamKind] | None = None,
    splits: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
) -> ArrayTable:
    """List samples whose images are in memory.

    Args:
        images: by the name of a stream, uint8, uint16 or float32 of shape (N, H, W) or
            (N, H, W, C); memory-mapped arrays are read as they are needed.
        labels: names of the N samples' classes, or numbers that ``classes`` names.
        present: by the name of a stream, which samples have it, shape (N,), bool; all by default.
            What an absent image holds is never read.
        classes: class names; those that occur, sorted, by default.
        kinds: what a stream holds; told from its name and values by default.
        splits: name of each sample's split; "train" by default.
        groups: recording, room or patient of each sample.
        ids: a name for each sample; its number by default.

    Raises:
        ValueError: if lengths, dtypes or shapes do not fit, or a label is of no class.

    Example:
        >>> rgb = np.zeros((3, 8, 8, 3), np.uint8)
        >>> table = arrays({"rgb": rgb}, ["bed", "desk", "bed"])
        >>> table.classes, table.targets.tolist()
        (('bed', 'desk'), [0, 1, 0])
    """
    total = len(labels)
    lengths = {name: len(array) for name, array in images.items()}
    lengths |= {f"present of {name}": len(has) for name, has in (present or {}).items()}
    for what, each in (("splits", splits), ("groups", groups), ("ids", ids)):
        lengths |= {} if each is None else {what: len(each)}
    if not images or any(length != total for length in lengths.values()):
        raise ValueError(f"there are {total} labels, and {lengths}; expected one of each a sample")
    if unknown := sorted(set(present or {}) - set(images)):
        raise ValueError(f"present names the stream {unknown[0]!r}; there are {', '.join(images)}")
    values = np.asarray(labels).tolist()
    known = list(classes or sorted({str(label) for label in values}))
    if classes and all(isinstance(label, int) for label in values):
        names = [known[label] if 0 <= label < len(known) else None for label in values]
    else:
        names = [str(label) if str(label) in known else None for label in values]
    if None in names:
        label = values[names.index(None)]
        raise ValueError(f"label {label!r} is of none of the classes {', '.join(known)}")
    has = {name: (present or {}).get(name, np.ones(total, bool)) for name in images}
    columns = [_column(name, array, (kinds or {}).get(name)) for name, array in images.items()]
    cells = [{name: row for name in images if has[name][row]} for row in range(total)]
    ids = list(map(str, range(total))) if ids is None else ids
    splits = [TRAIN] * total if splits is None else splits
    groups = [""] * total if groups is None else groups
    samples = list(map(Sample, ids, cells, map(str, names), splits, groups))
    return ArrayTable.of(samples, columns, known).without_empty()


@dataclass(frozen=True, eq=False)
class _Rows:
    """Images of one stream in an array; a cell is the number of a row."""

    name: str
    array: np.ndarray
    root: None = None

    def read(self, cell: int) -> np.ndarray:
        return np.asarray(self.array[cell])

    def read_many(self, cells: Sequence[int], *, pinned: bool = False) -> Tensor:
        return take_rows(self.array, np.asarray(cells, np.int64), pinned=pinned)

    def path(self, cell: int) -> Path:
        return Path(self.name, str(cell))

    def stamp(self, cell: int) -> Hashable:
        return cell


def _column(name: str, array: np.ndarray, kind: StreamKind | None) -> Column:
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or 0 in array.shape[1:] or str(array.dtype) not in _DTYPES:
        raise ValueError(
            f"images of {name!r} are {array.dtype} of shape {array.shape}; expected (N, H, W) or "
            f"(N, H, W, C) of {', '.join(_DTYPES)}"
        )
    return Column(described(name, array[0], kind), _Rows(name, array))
