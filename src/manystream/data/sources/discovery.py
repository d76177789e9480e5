"""The streams of a data set kept as folders, described by their images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from manystream.data.source import StreamSpec
from manystream.data.sources.folder import (
    LAYOUT,
    FolderSource,
    image_files_by_id,
    split_folder,
    stream_folder,
    subfolders,
)
from manystream.data.sources.hints import StreamHints, color_first
from manystream.data.sources.wanted import Wanted


def open_folder(wanted: Wanted) -> FolderSource:
    """Open a split kept as folders.

    Raises:
        ValueError: as :func:`discover_streams` and :class:`FolderSource`.
    """
    hints = wanted.hints
    streams = wanted.streams
    if streams is None:
        streams = discover_streams(wanted.root, wanted.split, wanted.names, hints)
    folders = subfolders(split_folder(wanted.root, wanted.split))
    hints.check(streams, [folder.name for folder in folders])
    return FolderSource(
        wanted.root,
        wanted.split,
        streams,
        wanted.classes,
        decode=hints.decoders(),
        max_pixels=hints.max_pixels,
        settle=wanted.settle("names that are not UTF-8", "are left out"),
    )


def discover_streams(
    root: str | Path,
    split: str,
    names: Sequence[str] | None = None,
    hints: StreamHints | None = None,
) -> tuple[StreamSpec, ...]:
    """Describe a split's streams by the first readable image of each.

    Args:
        root: the data set's folder.
        split: the folder of the split.
        names: streams to describe, in this order; all of the split by default, colour first.
        hints: what is known about them.

    Raises:
        ValueError: if the split or a stream is missing, or a stream holds no readable image.
    """
    hints = hints or StreamHints()
    folder = split_folder(Path(root), split)
    if names is not None:
        return tuple(_describe_stream(stream_folder(folder, name), hints) for name in names)
    specs = [_describe_stream(stream, hints) for stream in subfolders(folder)]
    if not specs:
        raise ValueError(f"{folder} has no stream folders; expected {LAYOUT}")
    return color_first(specs)


def _describe_stream(folder: Path, hints: StreamHints) -> StreamSpec:
    files = list(_image_files(folder))
    if not files:
        raise ValueError(f"{folder} holds no image; expected {LAYOUT}; remove or fill the folder")
    return hints.describe(folder.name, files)


def _image_files(folder: Path) -> Iterator[Path]:
    for class_folder in subfolders(folder):
        yield from image_files_by_id(class_folder).values()
