"""Write a table as one split of a prepared set: into a side folder, which is renamed at the end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from manystream.data.loader import prefetch
from manystream.data.prepared.layout import (
    PARTIAL_SUFFIX,
    StreamArray,
    checksum,
    describe,
    is_prepared,
    read_index,
    read_marker,
    write_index,
    write_marker,
)
from manystream.data.preprocessing import Size, resize
from manystream.data.statistics import StreamStatistics
from manystream.data.streams import StreamSpec
from manystream.data.survey import Progress
from manystream.data.table import SampleTable


def prepare_split(
    table: SampleTable,
    statistics: Sequence[StreamStatistics],
    root: str | Path,
    split: str,
    *,
    size: Size | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write a table as one split of a prepared set.

    Only present rows are stored. A split is whole or not there: a call that was interrupted, even
    killed, is made again from the start; a finished split is left as it is.

    Args:
        table: every present image must be readable.
        statistics: one entry per stream, kept for normalisation.
        root: folder of the prepared set.
        split: name of the split.
        size: height and width to resize to; None keeps images as they are, which then must have
            one size in each stream.
        num_workers: threads that read and write; 0 does so in the caller's.
        progress: called with how many images are written and how many there are.

    Returns:
        The split's folder.

    Raises:
        ValueError: if images of a stream differ in size or dtype, the folder holds a split of
            another data set or size, or the disk has no room.
    """
    root = Path(root)
    arrays = [_plan(table, m, of, size) for m, of in enumerate(statistics)]
    index = describe(table, split, arrays)
    if not is_prepared(root) and root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} exists and is no prepared set; name a folder that does not exist")
    known = read_marker(root) if is_prepared(root) else []
    if split not in known:
        write_marker(root, [*known, split])
    final, partial = root / split, root / (split + PARTIAL_SUFFIX)
    if final.exists():
        found = read_index(final)
        if {name: found[name] for name in index} != json.loads(json.dumps(index)):
            raise ValueError(
                f"{final} holds a split of another source, selection or size; name another folder, "
                "or remove that one"
            )
        return final
    shutil.rmtree(partial, ignore_errors=True)  # What a killed call left.
    needed = sum(array.total_bytes for array in arrays)
    if needed > (free := shutil.disk_usage(root).free):
        raise ValueError(
            f"split {split!r} takes {needed / 2**30:.2f} GiB and {root} has "
            f"{free / 2**30:.2f} GiB left; make room, or name a smaller size"
        )
    try:
        partial.mkdir()
        checksums = _write_rows(table, arrays, partial, size, num_workers, progress)
        write_index(partial, {**index, "checksums": checksums})
        for path in [*partial.iterdir(), partial]:
            _sync(path)
        partial.rename(final)
    except OSError as error:
        what = f"cannot write the prepared set: {error}; mend that and try again"
        raise ValueError(what) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # What is not whole by now.
    _sync(root)
    return final


def _write_rows(
    table: SampleTable,
    arrays: Sequence[StreamArray],
    folder: Path,
    size: Size | None,
    num_threads: int,
    progress: Progress | None,
) -> list[list[int]]:
    """Write the images of every stream, and return the CRC-32 of each."""

    def write(place: tuple[int, int, int]) -> int:
        m, row, sample = place
        array = arrays[m]
        image = _fit(table.read(sample, m), array.spec, size)
        if image.shape != array.shape[1:] or image.dtype != array.dtype:
            raise ValueError(
                f"{table.ids[sample]!r} of stream {array.spec.name!r} is {image.dtype} of "
                f"shape {image.shape}; the first image of its stream is {array.dtype} of shape "
                f"{array.shape[1:]}; name one size for all"
            )
        write_row(array.path(folder, m), array, row, image)
        return checksum(image)

    for m, array in enumerate(arrays):
        with array.path(folder, m).open("wb") as file:
            file.write(array.header)
            # In its full length, which takes no room on disk yet.
            file.truncate(file.tell() + array.total_bytes)
    places = [
        (m, row, sample)
        for m in range(len(arrays))
        for row, sample in enumerate(table.present[:, m].nonzero().flatten().tolist())
    ]
    checksums: list[list[int]] = [[] for _ in arrays]
    written = prefetch(write, places, num_threads) if num_threads else map(write, places)
    for done, (place, found) in enumerate(zip(places, written, strict=True), start=1):
        checksums[place[0]].append(found)
        if progress is not None:
            progress(done, len(places))
    return checksums


def write_row(path: Path, array: StreamArray, row: int, image: np.ndarray) -> None:
    """Write an image, (H, W, C), into a stream's file."""
    # Written, not mapped: on a full disk a mapped page ends the process without a word.
    with path.open("r+b") as file:
        file.seek(len(array.header) + row * image.nbytes)
        file.write(image.data)


def _plan(
    table: SampleTable, stream: int, statistics: StreamStatistics, size: Size | None
) -> StreamArray:
    """Plan the array of a stream by its first image."""
    spec = table.streams[stream]
    samples = table.present[:, stream].nonzero().flatten().tolist()
    if not samples:
        return StreamArray(spec, "uint8", (0, *(size or (1, 1)), spec.channels), statistics)
    row = _fit(table.read(samples[0], stream), spec, size)
    return StreamArray(spec, str(row.dtype), (len(samples), *row.shape), statistics)


def _fit(image: np.ndarray, spec: StreamSpec, size: Size | None) -> np.ndarray:
    return np.ascontiguousarray(image) if size is None else resize(image, spec, size)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
