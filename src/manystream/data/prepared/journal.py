"""What has been written of an unfinished split, so that it can be gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from manystream.data.prepared.arrays import checksum, create_array, map_array
from manystream.data.prepared.layout import SplitIndex

PLAN = "plan.json"
JOURNAL = "journal.jsonl"


class Chunk(NamedTuple):
    """Some rows of a stream, one after the other."""

    stream: int
    first: int
    length: int


class Written(NamedTuple):
    """A chunk that is in its file, and the CRC-32 of its rows."""

    chunk: Chunk
    checksums: list[int]


class Journal:
    """The chunks of an unfinished split that are written, one line each.

    A row that the journal names but whose bytes are not those it says, as after a power cut,
    counts as not written.

    Args:
        folder: as :func:`begin` made it.
        index: what is to be written.

    Raises:
        ValueError: if something else was being written there.
    """

    def __init__(self, folder: Path, index: SplitIndex) -> None:
        if json.loads((folder / PLAN).read_text(encoding="utf-8")) != _plan(index):
            raise ValueError(
                f"{folder} is an unfinished split of another source, selection or size; remove "
                "that folder, or name another --out"
            )
        self._index = index
        self._written = _intact(folder, index)
        self._file = (folder / JOURNAL).open("a", encoding="utf-8")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def has(self, chunk: Chunk) -> bool:
        """Whether a chunk is written."""
        return chunk in self._written

    def add(self, written: Written) -> None:
        """Note a chunk after its rows have been written."""
        self._written[written.chunk] = written.checksums
        # Begins a line of its own also after what a kill left of the last one.
        self._file.write("\n" + json.dumps(written))
        self._file.flush()

    def checksums(self) -> list[list[int]]:
        """CRC-32 of every row of every stream."""
        rows: list[list[int]] = [[] for _ in self._index.streams]
        for chunk in sorted(self._written):
            rows[chunk.stream] += self._written[chunk]
        return rows


def begin(folder: Path, index: SplitIndex) -> None:
    """Make the folder of an unfinished split, whole or not at all."""
    making = folder.with_name(folder.name + ".new")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    for path, array in zip(index.files(making), index.streams, strict=True):
        create_array(path, array)
    (making / PLAN).write_text(json.dumps(_plan(index)), encoding="utf-8")
    making.rename(folder)


def remove_journal(folder: Path) -> None:
    """Take away what a finished split does not need."""
    for name in (PLAN, JOURNAL):
        (folder / name).unlink(missing_ok=True)


def _plan(index: SplitIndex) -> object:
    return json.loads(json.dumps(index.to_json()))


def _intact(folder: Path, index: SplitIndex) -> dict[Chunk, list[int]]:
    path = folder / JOURNAL
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    arrays = [map_array(*pair) for pair in zip(index.files(folder), index.streams, strict=True)]
    return {
        chunk: checksums
        for chunk, checksums in filter(None, map(_parse, lines))
        if [checksum(row) for row in arrays[chunk.stream][chunk.first :][: chunk.length]]
        == checksums
    }


def _parse(line: str) -> Written | None:
    try:
        chunk, checksums = json.loads(line)
        return Written(Chunk(*chunk), checksums)
    except (ValueError, TypeError):  # The line that a kill cut off.
        return None
