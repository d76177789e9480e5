"""A survey's result, kept beside the data for the next run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from manystream.data.source import Source
from manystream.data.statistics import StreamStatistics
from manystream.data.survey import Progress, Survey, UnreadableFile, survey

_VERSION = 3


class StoredSource(Source, Protocol):
    """A source whose images lie on a disk, so that what was found about them can be kept there.

    Attributes:
        root: what paths are kept relative to.
        cache: the file to keep it in.
    """

    @property
    def root(self) -> Path: ...
    @property
    def cache(self) -> Path: ...

    def path(self, index: int, stream: int) -> Path:
        """File of one image below ``root``, or what stands for it in messages."""
        ...

    def fingerprint(self) -> str:
        """A text that changes whenever an image may have changed."""
        ...


def survey_once(
    source: StoredSource,
    *,
    limit: int | None = None,
    same_view: bool = False,
    progress: Progress | None = None,
) -> Survey:
    """:func:`survey`, kept in the source's ``cache`` for the next run.

    What is kept holds as long as the source's fingerprint, its streams and the arguments stay the
    same; deleting the file starts over. Survey the whole source, then call ``without``: the smaller
    source is another one and would be surveyed again. Where the file cannot be written, nothing is
    kept.
    """
    identity = repr((_VERSION, source.streams, limit, same_view, source.fingerprint()))
    kept = _load(source, identity)
    if kept is not None:
        return kept
    found = survey(source, limit=limit, same_view=same_view, progress=progress)
    _save(source, identity, found)
    return found


def _load(source: StoredSource, identity: str) -> Survey | None:
    try:
        kept = json.loads(source.cache.read_text(encoding="utf-8"))
        return _from_json(kept, source.root) if kept["identity"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):  # None kept yet, or damaged: survey again.
        return None


def _from_json(kept: dict[str, Any], root: Path) -> Survey:
    return Survey(
        tuple(StreamStatistics(tuple(s["mean"]), tuple(s["std"])) for s in kept["statistics"]),
        _files_from_json(kept["unreadable"], root),
        _files_from_json(kept["odd_depth"], root),
    )


def _files_from_json(kept: list[dict[str, str]], root: Path) -> tuple[UnreadableFile, ...]:
    return tuple(UnreadableFile(root / file["path"], file["reason"]) for file in kept)


def _files_to_json(files: tuple[UnreadableFile, ...], root: Path) -> list[dict[str, str]]:
    return [
        {"path": file.path.relative_to(root).as_posix(), "reason": file.reason} for file in files
    ]


def _save(source: StoredSource, identity: str, found: Survey) -> None:
    kept = {
        "identity": identity,
        "statistics": [asdict(stream) for stream in found.statistics],
        "unreadable": _files_to_json(found.unreadable, source.root),
        "odd_depth": _files_to_json(found.odd_depth, source.root),
    }
    # Ranks may survey at once: each writes its own file, and the last one to finish takes the name.
    partial = source.cache.with_suffix(f".{os.getpid()}")
    try:
        source.cache.parent.mkdir(exist_ok=True)
        partial.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        partial.replace(source.cache)
    except OSError:
        return
