"""What a check notes of each image: whether it can be read, its size, a digest of its pixels."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import NamedTuple

import numpy as np

from manystream.data.image import UnreadableImageError
from manystream.data.source import Source, StreamSpec, read_with_dtype
from manystream.data.survey import Progress, decode_all


class Look(NamedTuple):
    """One image as the check saw it.

    Attributes:
        sample: its number in its source.
        stream: number of its stream.
        name: its file, or its stream and sample where there are no files.
        problem: why it cannot be used; empty if it can.
        size: height and width.
        dtype: of the values in its file.
        digest: the same for two images if and only if they have the same pixels.
        constant: the one value that all pixels have; None if they differ.
    """

    sample: int
    stream: int
    name: str
    problem: str = ""
    size: tuple[int, int] = (0, 0)
    dtype: str = ""
    digest: str = ""
    constant: float | None = None


def look_at_all(source: Source, progress: Progress | None = None) -> list[Look]:
    """Read every present image once, in threads; the order is the source's.

    Args:
        source: the samples.
        progress: called with how many images are done and how many there are.
    """
    wanted = [(i, m) for i, m in source.present.nonzero().tolist()]
    return decode_all(partial(_look, source), wanted, progress)


def _look(source: Source, sample: int, stream: int) -> Look:
    look = Look(sample, stream, _name(source, sample, stream))
    try:
        pixels, dtype = read_with_dtype(source, sample, stream)
    except UnreadableImageError as error:
        return look._replace(problem=error.reason or str(error))
    return look._replace(
        problem=_misfit(pixels, source.streams[stream]),
        size=(pixels.shape[0], pixels.shape[1]),
        dtype=dtype,
        digest=_digest(pixels),
        constant=_constant(pixels),
    )


def _name(source: Source, sample: int, stream: int) -> str:
    path = getattr(source, "path", None)
    if path is None:
        return f"{source.streams[stream].name}/{source.ids[sample]}"
    return str(path(sample, stream))


def _misfit(pixels: np.ndarray, spec: StreamSpec) -> str:
    if pixels.shape[-1] != spec.channels:
        return f"it has {pixels.shape[-1]} channels; expected {spec.channels}"
    if spec.kind != "depth" and not np.isfinite(pixels).all():
        return "it has values that are NaN or infinite"
    return ""


def _digest(pixels: np.ndarray) -> str:
    kind = f"{pixels.shape} {pixels.dtype}".encode()
    return hashlib.blake2b(kind + pixels.tobytes(), digest_size=16).hexdigest()


def _constant(pixels: np.ndarray) -> float | None:
    first = pixels.flat[0]
    return float(first) if (pixels == first).all() else None
