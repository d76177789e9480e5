"""One look at every image: can it be read, its size, its statistics, a digest of its pixels.

What was seen is kept in the user's cache folder, image by image, so that training, checks and
prepared sets look once together, and again only at what has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from manystream.data.image import UnreadableImageError
from manystream.data.statistics import StreamStatistics, image_moments, pooled
from manystream.data.streams import StreamSpec
from manystream.data.table import SampleTable

Progress = Callable[[int, int], None]
"""Called after each image with how many are done and how many there are."""

Image = tuple[int, int]
"""An image by the numbers of its sample and of its stream."""

_VERSION = 1


class Look(NamedTuple):
    """One image as it was seen.

    Attributes:
        problem: why it cannot be used; empty if it can.
        doubt: which of its pixels cannot be used; empty if all can.
        dtype: of the values in its file.
        size: height and width.
        digest: the same for two images if and only if they have the same pixels.
        constant: the one value that all pixels have; None if they differ.
        moments: count, mean and squared deviations of each channel's pixels, shape (3, C).
    """

    problem: str = ""
    doubt: str = ""
    dtype: str = ""
    size: tuple[int, int] = (0, 0)
    digest: str = ""
    constant: float | None = None
    moments: np.ndarray | None = None


Looks = Mapping[Image, Look]
"""What was seen of each present image, in the table's order."""

Kept = dict[str, tuple[str, Look]]
"""What is kept of a data set: by a name for each image, its stamp and what was seen."""


def look_at(
    table: SampleTable, *, limit: int | None = None, progress: Progress | None = None
) -> dict[Image, Look]:
    """Read every present image once, in threads, but for those that were seen before.

    ``limit`` is how many samples are looked at, evenly spaced over the table; all by default.
    ``progress`` is called after each image that is read with the number done and the number to do.
    """
    images = _present_images(table, limit)
    file = _cache_file(table)
    kept = _load(file)
    # Named before it is read: what changes in between is looked at again.
    names = {image: _name(table, image) for image in images} if file is not None else {}
    looks = {
        image: kept[name][1]
        for image, (name, stamp) in names.items()
        if name in kept and kept[name][0] == stamp
    }
    todo = [image for image in images if image not in looks]
    with ThreadPoolExecutor() as pool:  # Decoders release the GIL.
        for done, look in enumerate(pool.map(lambda image: _look(table, *image), todo)):
            looks[todo[done]] = look
            if progress is not None:
                progress(done + 1, len(todo))
    if file is not None and todo:
        # What could not be used may be mended without a trace, as by other rights.
        new = [(names[image], looks[image]) for image in todo if not looks[image].problem]
        _save(file, kept | {name: (stamp, look) for (name, stamp), look in new})
    return {image: looks[image] for image in images}


def unusable(table: SampleTable, looks: Looks, *, same_view: bool = False) -> dict[Image, str]:
    """Return the images that cannot be used, and why.

    Besides those that cannot be read or do not fit their stream, images with another dtype than
    most of their stream; and with ``same_view`` all images of a sample that differ in aspect ratio,
    so cannot show the same view.
    """
    found = {image: look.problem for image, look in looks.items() if look.problem}
    found |= other_dtypes(table, looks)
    if same_view:
        usable = {image: look for image, look in looks.items() if image not in found}
        found |= {
            image: f"the images of its sample differ in aspect ratio ({sizes}); if they may, "
            "switch same_view off"
            for image, sizes in mixed_views(usable).items()
        }
    return {image: found[image] for image in looks if image in found}


def other_dtypes(table: SampleTable, looks: Looks) -> dict[Image, str]:
    """Return readable images with other numbers than most of their stream, as 8 bits among 16."""
    dtypes = {image: look.dtype for image, look in looks.items() if not look.problem}
    counts: list[Counter[str]] = [Counter() for _ in table.columns]
    for (_, stream), dtype in dtypes.items():
        counts[stream][dtype] += 1
    usual = [of_stream.most_common(1)[0][0] if of_stream else "" for of_stream in counts]
    return {
        image: f"it has {dtype} values; expected {usual[image[1]]} as in most of its stream"
        for image, dtype in dtypes.items()
        if dtype != usual[image[1]]
    }


def mixed_views(looks: Looks) -> dict[Image, str]:
    """Return images of samples that differ in aspect ratio, and what the sizes are."""
    by_sample: dict[int, list[Image]] = defaultdict(list)
    for image, look in looks.items():
        if not look.problem:
            by_sample[image[0]].append(image)
    return {
        image: ", ".join(f"{width}x{height}" for height, width in sizes)
        for images in by_sample.values()
        if not _one_view(sizes := [looks[image].size for image in images])
        for image in images
    }


def statistics(
    table: SampleTable, looks: Looks, samples: Iterable[int] | None = None
) -> tuple[StreamStatistics, ...]:
    """Return each stream's mean and standard deviation over what was seen of some samples, or all.

    In a ``"depth"`` stream only readings count: finite and above 0. Where nothing could be counted
    the mean is 0 and the deviation 1. An image counts where the table has it: take unusable ones
    out first.
    """
    counted = set(range(len(table)) if samples is None else samples)
    moments: list[list[np.ndarray]] = [[] for _ in table.columns]
    for (i, stream), look in looks.items():
        if i in counted and look.moments is not None:
            moments[stream].append(look.moments)
    streams = zip(moments, table.streams, strict=True)
    return tuple(pooled(of_stream, spec.channels) for of_stream, spec in streams)


def _present_images(table: SampleTable, limit: int | None) -> list[Image]:
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}; expected at least 1 sample, or None for all")
    total = len(table)
    chosen = np.unique(np.linspace(0, total - 1, min(limit or total, total)).round().astype(int))
    return [(int(chosen[row]), m) for row, m in table.present[chosen].nonzero().tolist()]


def _look(table: SampleTable, sample: int, stream: int) -> Look:
    """Read one image, and note what is to be known of it."""
    column = table.columns[stream]
    try:
        pixels, dtype = column.read(column.cells[sample])
    except UnreadableImageError as error:
        return Look(error.reason or str(error))
    size, digest = (pixels.shape[0], pixels.shape[1]), _digest(pixels)
    if problem := _misfit(pixels, column.spec):
        return Look(problem, dtype=dtype, size=size, digest=digest)
    first = pixels.flat[0]
    constant = float(first) if (pixels == first).all() else None
    moments = image_moments(pixels, column.spec)
    return Look("", _doubt(pixels, column.spec), dtype, size, digest, constant, moments)


def _misfit(pixels: np.ndarray, spec: StreamSpec) -> str:
    if pixels.shape[-1] != spec.channels:
        return f"it has {pixels.shape[-1]} channels; expected {spec.channels}"
    if spec.kind != "depth" and not np.isfinite(pixels).all():
        return "it has values that are NaN or infinite"
    return ""


def _doubt(pixels: np.ndarray, spec: StreamSpec) -> str:
    if spec.kind != "depth" or pixels.dtype.kind == "u":
        return ""
    odd = int(np.count_nonzero(~(np.isfinite(pixels) & (pixels >= 0))))
    if not odd:
        return ""
    return f"{odd} of {pixels.size} depth values are NaN, infinite or negative; 0 is no reading"


def _digest(pixels: np.ndarray) -> str:
    digest = hashlib.blake2b(f"{pixels.shape} {pixels.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _one_view(sizes: Sequence[tuple[int, int]]) -> bool:
    """Tell whether sizes have one aspect ratio, but for a pixel of rounding in each direction."""
    height, width = sizes[0]
    return all(abs(h * width - w * height) <= height + width for h, w in sizes[1:])


def cache_folder() -> Path | None:
    """Return where caches are to be, by the XDG base directory specification; None if nowhere."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        base = chosen if chosen.is_absolute() else Path("~/.cache").expanduser()
    except RuntimeError:  # A user without a home, as in some containers.
        return None
    return base / "manystream"


def _cache_file(table: SampleTable) -> Path | None:
    """Return the file for what is seen of a data set; None if nothing is to be kept of it."""
    root, folder = table.columns[0].storage.root, cache_folder()
    if root is None or folder is None:
        return None
    return folder / "survey" / f"{_hashed(str(root.resolve()))}.json"


def _name(table: SampleTable, image: Image) -> tuple[str, str]:
    """Name an image in the cache, with a stamp that changes whenever it may have changed."""
    column = table.columns[image[1]]
    cell, spec = column.cells[image[0]], column.spec
    what = column.storage.path(cell), spec.channels, spec.kind, spec.unit, column.decode
    return _hashed(what), _hashed(column.storage.stamp(cell))


def _hashed(what: object) -> str:
    text = repr(what).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=12).hexdigest()


def _load(file: Path | None) -> Kept:
    if file is None:
        return {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))[str(_VERSION)]
        return {
            name: (stamp, Look(*values)._replace(size=(h, w), moments=np.array(moments, float)))
            for name, (stamp, values) in kept.items()
            for (h, w), moments in [(values[3], values[6])]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}  # None kept yet, of another version, or damaged: look again.


def _save(file: Path, kept: Kept) -> None:
    content = {
        name: (stamp, look._replace(moments=np.asarray(look.moments).tolist()))
        for name, (stamp, look) in kept.items()
    }
    # Ranks may look at once: each writes its own file, and the last one to finish takes the name.
    partial = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({_VERSION: content}, separators=(",", ":")), "utf-8")
        partial.replace(file)
    except OSError:  # A disk that is full or cannot be written to: look again the next time.
        return
