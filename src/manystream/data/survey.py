"""The one-time survey of a data set: decode every image, measure it, and note what is damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from manystream.data.image import UnreadableImageError
from manystream.data.source import Source, StreamSpec, read_with_dtype
from manystream.data.statistics import Moments, StreamStatistics, image_moments, merge_moments

Progress = Callable[[int, int], None]
"""Called after each image with how many are done and how many there are."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class UnreadableFile:
    """An image that cannot be trained on as it is, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Survey:
    """What one pass over a source's images found.

    Attributes:
        statistics: one per stream, over its readable images.
        unreadable: damaged files, and files whose channels, dtype, values or aspect ratio do not
            fit their stream or sample.
        odd_depth: files of depth with pixels that are NaN, infinite or negative. They count as no
            reading.
    """

    statistics: tuple[StreamStatistics, ...]
    unreadable: tuple[UnreadableFile, ...]
    odd_depth: tuple[UnreadableFile, ...] = ()

    @property
    def unreadable_paths(self) -> set[Path]:
        """What ``without`` of a source of files takes."""
        return {file.path for file in self.unreadable}


def presence_summary(source: Source) -> dict[str, int]:
    """How many samples lack each stream, by the stream's name."""
    absent = (~source.present).sum(dim=0).tolist()
    return {spec.name: count for spec, count in zip(source.streams, absent, strict=True)}


def survey(
    source: Source,
    *,
    limit: int | None = None,
    same_view: bool = False,
    progress: Progress | None = None,
) -> Survey:
    """Decode every present image once, in threads.

    In a ``"depth"`` stream only readings count: finite and above 0. Elsewhere every pixel counts,
    and an image with a NaN or an infinity is unreadable. A stream's dtype is the one most of its
    images have. The result does not depend on the order in which threads finish.

    Args:
        source: the data set; a ``path(index, stream)`` method, where it has one, names its files.
        limit: look at this many samples only, evenly spaced over the source.
        same_view: whether the images of a sample are all unreadable if they differ in aspect ratio.
        progress: called after each image with the number done and the number to do.

    Returns:
        Statistics per stream (mean 0, standard deviation 1 where nothing could be counted) and
        the unreadable files in the source's order.

    Raises:
        ValueError: if ``limit`` is below 1.
    """
    images = decode_all(partial(_examine, source), _present_images(source, limit), progress)
    dtypes = usual_dtypes([(image.stream, image.dtype) for image in images])
    images = [_with_dtype_checked(image, dtypes.get(image.stream, "")) for image in images]
    if same_view:
        images = _with_view_checked(images)
    return Survey(
        tuple(_stream_statistics(images, m, spec) for m, spec in enumerate(source.streams)),
        tuple(UnreadableFile(image.path, image.problem) for image in images if image.problem),
        tuple(
            UnreadableFile(image.path, image.doubt)
            for image in images
            if image.doubt and not image.problem
        ),
    )


class _Image(NamedTuple):
    """One image as the survey saw it; ``problem`` is empty where it is usable.

    ``doubt`` says which of its pixels are not, ``size`` is height and width.
    """

    sample: int
    stream: int
    path: Path
    dtype: str = ""
    size: tuple[int, int] = (0, 0)
    moments: Moments | None = None
    problem: str = ""
    doubt: str = ""

    def refused(self, problem: str) -> _Image:
        """The same image, not to be used."""
        return self._replace(moments=None, problem=problem)


def _present_images(source: Source, limit: int | None) -> list[tuple[int, int]]:
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}; expected at least 1 sample, or None for all")
    total = len(source.ids)
    chosen = np.unique(np.linspace(0, total - 1, min(limit or total, total)).round().astype(int))
    present = source.present[chosen].nonzero().tolist()
    return [(int(chosen[row]), stream) for row, stream in present]


def decode_all(
    examine: Callable[[int, int], Found],
    wanted: Sequence[tuple[int, int]],
    progress: Progress | None,
) -> list[Found]:
    """What threads find in images, given by sample and stream; in the order of these."""
    found = []
    with ThreadPoolExecutor() as pool:  # Decoders release the GIL.
        for one in pool.map(lambda pair: examine(*pair), wanted):
            found.append(one)
            if progress is not None:
                progress(len(found), len(wanted))
    return found


def _examine(source: Source, index: int, stream: int) -> _Image:
    spec, path = source.streams[stream], _path(source, index, stream)
    try:
        pixels, dtype = read_with_dtype(source, index, stream)
    except UnreadableImageError as error:
        return _Image(index, stream, path, problem=error.reason or str(error))
    if problem := _misfit(pixels, spec):
        return _Image(index, stream, path, problem=problem)
    size, moments = (pixels.shape[0], pixels.shape[1]), image_moments(pixels, spec)
    doubt = _doubt(pixels, spec)
    return _Image(index, stream, path, dtype, size, moments, doubt=doubt)


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


def _doubt(pixels: np.ndarray, spec: StreamSpec) -> str:
    if spec.kind != "depth" or pixels.dtype.kind == "u":
        return ""
    odd = int(np.count_nonzero(~(np.isfinite(pixels) & (pixels >= 0))))
    if not odd:
        return ""
    return f"{odd} of {pixels.size} depth values are NaN, infinite or negative; 0 is no reading"


def usual_dtypes(images: Iterable[tuple[int, str]]) -> dict[int, str]:
    """The dtype that most images of each stream have.

    Args:
        images: number of the stream and dtype of each; empty where it could not be read.
    """
    counts: dict[int, Counter[str]] = {}
    for stream, dtype in images:
        if dtype:
            counts.setdefault(stream, Counter())[dtype] += 1
    return {stream: of_stream.most_common(1)[0][0] for stream, of_stream in counts.items()}


def _with_dtype_checked(image: _Image, usual: str) -> _Image:
    if image.problem or image.dtype == usual:
        return image
    problem = f"expected {usual} values as in most of its stream, found {image.dtype}"
    return image.refused(problem)


def _with_view_checked(images: Sequence[_Image]) -> list[_Image]:
    sizes: dict[int, list[tuple[int, int]]] = {}
    for image in images:
        if not image.problem:
            sizes.setdefault(image.sample, []).append(image.size)
    mixed = {sample: of for sample, of in sizes.items() if not _one_view(of)}
    return [
        image.refused(_mixed(mixed[image.sample]))
        if image.sample in mixed and not image.problem
        else image
        for image in images
    ]


def _one_view(sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether all sizes have one aspect ratio, but for a pixel of rounding in each direction."""
    height, width = sizes[0]
    return all(abs(h * width - w * height) <= height + width for h, w in sizes[1:])


def _mixed(sizes: Sequence[tuple[int, int]]) -> str:
    listed = ", ".join(f"{width}x{height}" for height, width in sizes)
    return (
        f"the images of its sample differ in aspect ratio ({listed}); if they may, "
        "switch same_view off"
    )


def _stream_statistics(images: Sequence[_Image], stream: int, spec: StreamSpec) -> StreamStatistics:
    parts = [
        image.moments for image in images if image.stream == stream and image.moments is not None
    ]
    return merge_moments(parts, spec.channels).statistics()
