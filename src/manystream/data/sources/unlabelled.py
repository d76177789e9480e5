"""Images without classes, to predict on: ``folder/<stream>/<id>.<ext>``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
import torch

from manystream.data.image import read_image
from manystream.data.source import StreamSpec
from manystream.data.sources.folder import image_files_by_id
from manystream.data.sources.hints import StreamHints


class UnlabelledFolder:
    """Samples in one folder per stream; a stream without a folder is absent from every sample.

    Args:
        folder: where the streams' folders are.
        streams: the model's streams, in its order.
        hints: the units of depth, if the model takes it in metres.

    Attributes:
        folder, streams: as given.
        classes: none.
        ids: stem of each sample's files, sorted.
        targets: zeros, shape (N,), int64.
        present: which streams have a file, shape (N, M), bool.

    Raises:
        ValueError: if there is no image of any stream, or the hints do not fit the streams.
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self, folder: str | Path, streams: Sequence[StreamSpec], hints: StreamHints | None = None
    ) -> None:
        self._hints = hints or StreamHints()
        self._hints.check(streams, [spec.name for spec in streams])
        self.streams = tuple(streams)
        self.folder = Path(folder)
        self._fill([image_files_by_id(self.folder / spec.name) for spec in self.streams])

    def path(self, index: int, stream: int) -> Path:
        """File of one image, never asked of an absent one."""
        return self._files[stream][self.ids[index]]

    def without(self, unreadable: AbstractSet[Path]) -> UnlabelledFolder:
        """Copy in which these files are absent; samples left with no stream are dropped.

        Args:
            unreadable: paths as :meth:`path` gives them.

        Raises:
            ValueError: if no sample is left.
        """
        remaining = copy.copy(self)
        remaining._fill(
            [{i: p for i, p in files.items() if p not in unreadable} for files in self._files]
        )
        return remaining

    def _fill(self, files: list[dict[str, Path]]) -> None:
        self._files = files
        self.ids = sorted(set().union(*files))
        if not self.ids:
            names = ", ".join(spec.name for spec in self.streams)
            raise ValueError(
                f"no readable image of the streams {names} under {self.folder}; "
                "expected <stream>/<id>.<ext>"
            )
        self.targets = torch.zeros(len(self.ids), dtype=torch.int64)
        self.present = torch.tensor([[i in of_stream for of_stream in files] for i in self.ids])

    def read(self, index: int, stream: int) -> np.ndarray:
        """Read one raw image, shape (H, W, C).

        Raises:
            UnreadableImageError: if the file is damaged.
        """
        return self.decoded(self.read_stored(index, stream), index, stream)

    def read_stored(self, index: int, stream: int) -> np.ndarray:
        """Read one image with the values that its file has."""
        return read_image(self.path(index, stream), self._hints.max_pixels)

    def decoded(self, stored: np.ndarray, index: int, stream: int) -> np.ndarray:
        """Turn the values of a file into those of its stream."""
        decode = self._hints.decoders().get(self.streams[stream].name)
        return stored if decode is None else decode(stored)
