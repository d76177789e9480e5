"""Write a split of any source as a prepared set; what was interrupted goes on where it stopped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from manystream.data.prepared.arrays import checksum, write_rows
from manystream.data.prepared.journal import Chunk, Journal, Written, begin, remove_journal
from manystream.data.prepared.layout import (
    PARTIAL_SUFFIX,
    SplitIndex,
    StreamArray,
    is_prepared,
    read_index,
    read_marker,
    write_index,
    write_marker,
)
from manystream.data.prepared.rows import Size, fit_row
from manystream.data.source import Source, groups_of
from manystream.data.statistics import StreamStatistics
from manystream.data.survey import Progress

ROWS_PER_CHUNK = 16


def prepare_split(
    source: Source,
    statistics: Sequence[StreamStatistics],
    root: str | Path,
    split: str,
    *,
    size: Size | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write a source as one split of a prepared set.

    Only present rows are stored. A call that was interrupted, even killed, is finished by making
    it again; a finished split is left as it is.

    Args:
        source: every present image must be readable.
        statistics: one entry per stream, kept for normalisation.
        root: folder of the prepared set.
        split: name of the split.
        size: height and width to resize to; None keeps images as they are, which then must have
            one size in each stream.
        num_workers: processes that read; 0 reads in this one.
        progress: called with how many images are written and how many there are.

    Returns:
        The split's folder.

    Raises:
        ValueError: if images of a stream differ in size or dtype, the folder holds a split of
            another source or size, or the disk has no room.
    """
    root = Path(root)
    index = _plan(source, statistics, split, size)
    _add_split(root, split)
    final, partial = root / split, root / (split + PARTIAL_SUFFIX)
    if final.exists():
        _check_same(read_index(final)[0], index, final)
    else:
        if not partial.exists():
            _check_room(root, index)
            begin(partial, index)
        with Journal(partial, index) as journal:
            writer = _ChunkWriter(source, index, partial, size)
            _write_missing(journal, writer, num_workers, progress or _nobody)
            _seal(partial, index, journal)
        partial.rename(final)
        _sync(root)
    remove_journal(final)
    return final


class _ChunkWriter(Dataset[Written | ValueError]):
    """Reads some rows of a stream and writes them where they belong.

    An error is handed over, not raised, since a worker's exception arrives as a traceback.
    """

    def __init__(self, source: Source, index: SplitIndex, folder: Path, size: Size | None) -> None:
        self.source = source
        self.index = index
        self.files = index.files(folder)
        self.size = size
        self.samples = [source.present[:, m].nonzero().flatten() for m in range(len(self.files))]
        self.todo: list[Chunk] = []

    def __len__(self) -> int:
        return len(self.todo)

    def __getitem__(self, number: int) -> Written | ValueError:
        try:
            return self._write(self.todo[number])
        except ValueError as error:
            return error
        except OSError as error:
            return ValueError(
                f"cannot write the prepared set: {error}; what is written is kept, run the same "
                "command again when that is mended"
            )

    def _write(self, chunk: Chunk) -> Written:
        array = self.index.streams[chunk.stream]
        samples = self.samples[chunk.stream][chunk.first : chunk.first + chunk.length].tolist()
        rows = np.stack([self._read(sample, chunk.stream, array) for sample in samples])
        write_rows(self.files[chunk.stream], array, chunk.first, rows)
        return Written(chunk, [checksum(row) for row in rows])

    def _read(self, sample: int, stream: int, array: StreamArray) -> np.ndarray:
        row = fit_row(self.source.read(sample, stream), array.spec, self.size)
        if row.shape != array.shape[1:] or row.dtype != array.dtype:
            raise ValueError(
                f"{self.source.ids[sample]!r} of stream {array.spec.name!r} is {row.dtype} of "
                f"shape {row.shape}; the first image of its stream is {array.dtype} of shape "
                f"{array.shape[1:]}; name one size for all with --size"
            )
        return row


def _plan(
    source: Source, statistics: Sequence[StreamStatistics], split: str, size: Size | None
) -> SplitIndex:
    groups = groups_of(source)
    return SplitIndex(
        split,
        tuple(source.classes),
        tuple(source.ids),
        tuple(source.targets.tolist()),
        None if groups is None else tuple(groups),
        tuple(map(tuple, source.present.tolist())),
        tuple(_plan_stream(source, m, statistics[m], size) for m in range(len(source.streams))),
    )


def _plan_stream(
    source: Source, stream: int, statistics: StreamStatistics, size: Size | None
) -> StreamArray:
    spec = source.streams[stream]
    samples = source.present[:, stream].nonzero().flatten().tolist()
    if not samples:
        return StreamArray(spec, "uint8", (0, *(size or (1, 1)), spec.channels), statistics)
    row = fit_row(source.read(samples[0], stream), spec, size)
    height, width, channels = row.shape
    return StreamArray(spec, str(row.dtype), (len(samples), height, width, channels), statistics)


def _check_same(found: SplitIndex, wanted: SplitIndex, folder: Path) -> None:
    if found != wanted:
        raise ValueError(
            f"{folder} holds a split of another source, selection or size; name another --out, or "
            "remove that folder"
        )


def _add_split(root: Path, split: str) -> None:
    if not is_prepared(root) and root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(
            f"--out {root} exists and is no prepared set; name a folder that does not exist"
        )
    known = read_marker(root) if is_prepared(root) else ()
    if split not in known:
        write_marker(root, [*known, split])


def _check_room(root: Path, index: SplitIndex) -> None:
    needed = sum(array.total_bytes for array in index.streams)
    if needed > (free := shutil.disk_usage(root).free):
        raise ValueError(
            f"split {index.split!r} takes {needed / 2**30:.2f} GiB and {root} has "
            f"{free / 2**30:.2f} GiB left; make room, or name a smaller --size"
        )


def _write_missing(
    journal: Journal, writer: _ChunkWriter, num_workers: int, progress: Progress
) -> None:
    writer.todo = [chunk for chunk in _chunks(writer.index) if not journal.has(chunk)]
    total = sum(array.shape[0] for array in writer.index.streams)
    done = total - sum(chunk.length for chunk in writer.todo)
    progress(done, total)
    attempts: Iterable[Written | ValueError] = DataLoader(
        writer, batch_size=None, num_workers=num_workers
    )
    for written in attempts:
        if isinstance(written, ValueError):
            raise written
        journal.add(written)
        done += written.chunk.length
        progress(done, total)


def _chunks(index: SplitIndex) -> Iterator[Chunk]:
    for stream, array in enumerate(index.streams):
        for first in range(0, array.shape[0], ROWS_PER_CHUNK):
            yield Chunk(stream, first, min(ROWS_PER_CHUNK, array.shape[0] - first))


def _nobody(done: int, total: int) -> None:
    """Take progress that nobody watches."""


def _seal(folder: Path, index: SplitIndex, journal: Journal) -> None:
    """Have everything on the disk before the folder gets its final name."""
    write_index(folder, index, journal.checksums())
    for path in [*index.files(folder), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
