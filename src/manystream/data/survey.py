"""The one-time survey of a data set: decode every image, measure it, and note what is damaged."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from manystream.data.folder import FolderSource
from manystream.data.image import UnreadableImageError
from manystream.data.source import Source, StreamSpec
from manystream.data.statistics import Moments, StreamStatistics, image_moments, merge_moments

_CACHE_VERSION = 1

Progress = Callable[[int, int], None]
"""Called after each image with how many are done and how many there are."""


@dataclass(frozen=True)
class UnreadableFile:
    """An image that cannot be trained on, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Survey:
    """What one pass over a source's images found.

    Attributes:
        statistics: one per stream, over its readable images.
        unreadable: damaged files, and files whose channels, dtype or values do not fit the stream.
    """

    statistics: tuple[StreamStatistics, ...]
    unreadable: tuple[UnreadableFile, ...]

    @property
    def unreadable_paths(self) -> set[Path]:
        """What :meth:`FolderSource.without` takes."""
        return {file.path for file in self.unreadable}


def presence_summary(source: Source) -> dict[str, int]:
    """How many samples lack each stream, by the stream's name."""
    absent = (~source.present).sum(dim=0).tolist()
    return {spec.name: count for spec, count in zip(source.streams, absent, strict=True)}


def survey(source: Source, *, limit: int | None = None, progress: Progress | None = None) -> Survey:
    """Decode every present image once, in threads.

    In a ``"depth"`` stream only readings count: finite and above 0. Elsewhere every pixel counts,
    and an image with a NaN or an infinity is unreadable. A stream's dtype is the one most of its
    images have. The result does not depend on the order in which threads finish.

    Args:
        source: the data set; a ``path(index, stream)`` method, where it has one, names its files.
        limit: look at this many samples only, evenly spaced over the source.
        progress: called after each image with the number done and the number to do.

    Returns:
        Statistics per stream (mean 0, standard deviation 1 where nothing could be counted) and
        the unreadable files in the source's order.

    Raises:
        ValueError: if ``limit`` is below 1.
    """
    images = _decode_all(source, _present_images(source, limit), progress)
    dtypes = [_usual_dtype(images, stream) for stream in range(len(source.streams))]
    images = [_with_dtype_checked(image, dtypes[image.stream]) for image in images]
    return Survey(
        tuple(_stream_statistics(images, m, spec) for m, spec in enumerate(source.streams)),
        tuple(UnreadableFile(image.path, image.problem) for image in images if image.problem),
    )


def survey_folder(
    source: FolderSource, *, limit: int | None = None, progress: Progress | None = None
) -> Survey:
    """:func:`survey`, kept in ``<root>/.manystream/survey-<split>.json`` for the next run.

    What is kept holds as long as the files' names, sizes and modification times, the streams and
    ``limit`` stay the same; deleting the file starts over. Survey the whole source, then call
    ``source.without``: the smaller source is another one and would be surveyed again. Where the
    folder cannot be written, nothing is kept.
    """
    cache = source.root / ".manystream" / f"survey-{source.split}.json"
    fingerprint = _fingerprint(source, limit)
    kept = _load(cache, fingerprint, source.root)
    if kept is not None:
        return kept
    found = survey(source, limit=limit, progress=progress)
    _save(cache, fingerprint, source.root, found)
    return found


class _Image(NamedTuple):
    """One image as the survey saw it; ``problem`` is empty where it is usable."""

    stream: int
    path: Path
    dtype: str = ""
    moments: Moments | None = None
    problem: str = ""


def _present_images(source: Source, limit: int | None) -> list[tuple[int, int]]:
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}; expected at least 1 sample, or None for all")
    total = len(source.ids)
    chosen = np.unique(np.linspace(0, total - 1, min(limit or total, total)).round().astype(int))
    present = source.present[chosen].nonzero().tolist()
    return [(int(chosen[row]), stream) for row, stream in present]


def _decode_all(
    source: Source, wanted: Sequence[tuple[int, int]], progress: Progress | None
) -> list[_Image]:
    images = []
    with ThreadPoolExecutor() as pool:  # Decoders release the GIL.
        for image in pool.map(lambda pair: _examine(source, *pair), wanted):
            images.append(image)
            if progress is not None:
                progress(len(images), len(wanted))
    return images


def _examine(source: Source, index: int, stream: int) -> _Image:
    spec, path = source.streams[stream], _path(source, index, stream)
    try:
        pixels = source.read(index, stream)
    except UnreadableImageError as error:
        return _Image(stream, path, problem=error.reason or str(error))
    if problem := _misfit(pixels, spec):
        return _Image(stream, path, problem=problem)
    return _Image(stream, path, str(pixels.dtype), image_moments(pixels, spec))


def _path(source: Source, index: int, stream: int) -> Path:
    path = getattr(source, "path", None)
    if path is None:
        return Path(source.streams[stream].name) / source.ids[index]
    return Path(path(index, stream))


def _misfit(pixels: np.ndarray, spec: StreamSpec) -> str:
    if pixels.shape[-1] != spec.channels:
        return (
            f"expected {spec.channels} channels for stream {spec.name!r}, found {pixels.shape[-1]}"
        )
    if spec.kind != "depth" and not np.isfinite(pixels).all():
        return f"expected finite values for stream {spec.name!r}, found NaN or infinity"
    return ""


def _usual_dtype(images: Sequence[_Image], stream: int) -> str:
    counts = Counter(image.dtype for image in images if image.stream == stream and image.dtype)
    return counts.most_common(1)[0][0] if counts else ""


def _with_dtype_checked(image: _Image, usual: str) -> _Image:
    if image.problem or image.dtype == usual:
        return image
    problem = f"expected {usual} values as in most of its stream, found {image.dtype}"
    return image._replace(moments=None, problem=problem)


def _stream_statistics(images: Sequence[_Image], stream: int, spec: StreamSpec) -> StreamStatistics:
    parts = [
        image.moments for image in images if image.stream == stream and image.moments is not None
    ]
    return merge_moments(parts, spec.channels).statistics()


def _fingerprint(source: FolderSource, limit: int | None) -> str:
    digest = hashlib.sha256(repr((_CACHE_VERSION, source.streams, limit)).encode())
    for path in _present_paths(source):
        status = path.stat()
        relative = path.relative_to(source.root).as_posix()
        digest.update(repr((relative, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _present_paths(source: FolderSource) -> Iterator[Path]:
    for index, stream in source.present.nonzero().tolist():
        yield source.path(index, stream)


def _load(cache: Path, fingerprint: str, root: Path) -> Survey | None:
    try:
        kept = json.loads(cache.read_text(encoding="utf-8"))
        return _from_json(kept, root) if kept["fingerprint"] == fingerprint else None
    except (OSError, ValueError, KeyError, TypeError):  # None kept yet, or damaged: survey again.
        return None


def _from_json(kept: dict[str, Any], root: Path) -> Survey:
    return Survey(
        tuple(StreamStatistics(tuple(s["mean"]), tuple(s["std"])) for s in kept["statistics"]),
        tuple(UnreadableFile(root / file["path"], file["reason"]) for file in kept["unreadable"]),
    )


def _save(cache: Path, fingerprint: str, root: Path, found: Survey) -> None:
    unreadable = [
        {"path": file.path.relative_to(root).as_posix(), "reason": file.reason}
        for file in found.unreadable
    ]
    statistics = [asdict(stream) for stream in found.statistics]
    kept = {"fingerprint": fingerprint, "statistics": statistics, "unreadable": unreadable}
    # Ranks may survey at once: each writes its own file, and the last one to finish takes the name.
    partial = cache.with_suffix(f".{os.getpid()}")
    try:
        cache.parent.mkdir(exist_ok=True)
        partial.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        partial.replace(cache)
    except OSError:
        return
