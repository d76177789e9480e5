"""The streams of a data set kept as folders, described by their images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from manystream.data.folder import (
    LAYOUT,
    image_files_by_id,
    split_folder,
    stream_folder,
    subfolders,
)
from manystream.data.image import UnreadableImageError, read_image
from manystream.data.source import StreamKind, StreamSpec


def discover_streams(
    root: str | Path, split: str, names: Sequence[str] | None = None
) -> tuple[StreamSpec, ...]:
    """Describe a split's streams by the first readable image of each.

    Three channels of uint8 are ``"color"``; one channel is ``"depth"`` if it is uint16 or float32
    or if the folder's name contains "depth"; anything else is ``"other"``.

    Args:
        root: the data set's folder.
        split: the folder of the split.
        names: streams to describe, in this order; all of the split by default, colour first.

    Raises:
        ValueError: if the split or a stream is missing, or a stream holds no readable image.
    """
    folder = split_folder(Path(root), split)
    if names is not None:
        return tuple(_describe_stream(stream_folder(folder, name)) for name in names)
    specs = [_describe_stream(stream) for stream in subfolders(folder)]
    if not specs:
        raise ValueError(f"{folder} has no stream folders; expected {LAYOUT}")
    return tuple(sorted(specs, key=_color_first))


def _color_first(spec: StreamSpec) -> tuple[bool, bool, str]:
    named_color = any(word in spec.name.lower() for word in ("rgb", "color", "colour"))
    return spec.kind != "color", not named_color, spec.name


def _describe_stream(folder: Path) -> StreamSpec:
    image = _first_readable(folder)
    return StreamSpec(folder.name, image.shape[-1], _infer_kind(folder.name, image))


def _infer_kind(name: str, image: np.ndarray) -> StreamKind:
    channels = image.shape[-1]
    if channels == 3 and image.dtype == np.uint8:
        return "color"
    if channels == 1 and (image.dtype != np.uint8 or "depth" in name.lower()):
        return "depth"
    return "other"


def _first_readable(folder: Path) -> np.ndarray:
    problem = ValueError(f"{folder} holds no image; expected {LAYOUT}; remove or fill the folder")
    for file in _image_files(folder):
        try:
            return read_image(file)
        except UnreadableImageError as error:
            problem = error
    raise problem


def _image_files(folder: Path) -> Iterator[Path]:
    for class_folder in subfolders(folder):
        yield from image_files_by_id(class_folder).values()
