"""What SUN RGB-D and NYU Depth v2 share: MATLAB files, official splits, RGB and depth in metres."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manystream.data.problems import Printer
from manystream.data.splitting import TEST, TRAIN, TRAINVAL, VAL, HeldOut
from manystream.data.streams import StreamSpec, names_of
from manystream.data.table import Column, Sample, SampleTable

if TYPE_CHECKING:
    import h5py

RGB, METRES = StreamSpec("rgb", 3, "color"), StreamSpec("depth", 1, "depth", "m")


def official_table(
    listed: Callable[[str, Sequence[str]], list[Sample]],
    lists: tuple[str, str],
    columns: Sequence[Column],
    classes: Sequence[str],
    *,
    splits: Sequence[str] | None,
    streams: Sequence[str | StreamSpec] | None,
    held_out: HeldOut | None,
    report: Printer,
) -> SampleTable:
    """Make the table of a data set that comes with a list for training and one for test.

    "train" and "val" are parts of the first of the two lists, "trainval" is all of it. ``listed``
    is called with the name of a list and the splits that it is wanted for, and gives its samples,
    without a split yet; the columns are RGB and depth, without cells.

    Raises:
        ValueError: if there is no split or stream of a name.
    """
    splits, held_out = splits or (TRAIN, VAL, TEST), held_out or HeldOut()
    wanted: dict[str, list[str]] = {}
    for split in splits:
        if split not in (known := (TRAIN, VAL, TRAINVAL, TEST)):
            raise ValueError(f"split={split!r} is none of these data; expected {', '.join(known)}")
        wanted.setdefault(TEST if split == TEST else TRAIN, []).append(split)
    samples = [
        sample._replace(split=part)
        for part, of_part in wanted.items()
        for sample in listed(lists[part == TEST], of_part)
    ]
    samples = held_out.divide(samples, classes, splits, report)
    table = SampleTable.of(samples, columns, classes, held_out)
    rows = sorted({row for split in splits for row in table.rows(split)})
    return table.select(rows).with_streams(names_of(streams, (RGB, METRES)))


def read_strings(path: Path, name: str) -> list[str]:
    """Read a cell array of strings from a MATLAB file of version 5 to 7.3.

    Raises:
        ValueError: if the file is damaged or has no such variable.
    """
    with _reading(path, name) as file:
        cells = np.ravel(file[name])
        if isinstance(file, dict):
            return ["".join(map(str, np.ravel(cell))) for cell in cells]
        # In HDF5 a cell array is an array of references to arrays of UTF-16 codes.
        codes = [np.ravel(file[reference]).astype("<u2") for reference in cells]
        return [text.tobytes().decode("utf-16-le") for text in codes]


def read_numbers(path: Path, name: str) -> list[int]:
    """Read an array of whole numbers as a list from a MATLAB file of version 5 to 7.3.

    Raises:
        ValueError: if the file is damaged or has no such variable.
    """
    with _reading(path, name) as file:
        numbers = np.ravel(file[name])
        whole = numbers.astype(np.int64)
        if not np.array_equal(whole, numbers):
            raise ValueError("it holds values that are not whole numbers")
        return [int(number) for number in whole]


def array_shapes(path: Path, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of arrays in a file of version 7.3, as HDF5 has them: MATLAB's, reversed.

    Raises:
        ValueError: if the file is damaged or has no such variable.
    """
    shapes = {}
    for name in names:
        with _reading(path, name) as file:
            shapes[name] = file[name].shape
    return shapes


@contextmanager
def _reading(path: Path, name: str) -> Iterator[h5py.File | dict[str, Any]]:
    """Open a MATLAB file; one of before version 7.3 is a dictionary with one variable."""
    import h5py  # Only those who have such files need these.
    from scipy.io import loadmat

    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                yield file
        else:
            yield loadmat(path, variable_names=[name])
    except Exception as error:  # Damaged files make SciPy raise a dozen different kinds.
        reason = f"no variable {name!r}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"cannot read {name!r} of the MATLAB file {path}: {reason}; get it again"
        ) from error
