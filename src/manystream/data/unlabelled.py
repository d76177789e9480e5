"""Images without classes, to predict on: ``folder/<stream>/<id>.<ext>``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from manystream.data.folder import image_files_by_id
from manystream.data.image import read_image
from manystream.data.source import StreamSpec


class UnlabelledFolder:
    """Samples in one folder per stream; a stream without a folder is absent from every sample.

    Args:
        folder: where the streams' folders are.
        streams: the model's streams, in its order.

    Attributes:
        streams: as given.
        classes: none.
        ids: stem of each sample's files, sorted.
        targets: zeros, shape (N,), int64.
        present: which streams have a file, shape (N, M), bool.

    Raises:
        ValueError: if there is no image of any stream.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, folder: str | Path, streams: Sequence[StreamSpec]) -> None:
        self.streams = tuple(streams)
        self._files = [image_files_by_id(Path(folder) / spec.name) for spec in self.streams]
        self.ids = sorted(set().union(*self._files))
        if not self.ids:
            names = ", ".join(spec.name for spec in self.streams)
            raise ValueError(
                f"no image of the streams {names} under {folder}; expected <stream>/<id>.<ext>"
            )
        self.targets = torch.zeros(len(self.ids), dtype=torch.int64)
        self.present = torch.tensor([[i in files for files in self._files] for i in self.ids])

    def read(self, index: int, stream: int) -> np.ndarray:
        """Read one raw image, shape (H, W, C).

        Raises:
            UnreadableImageError: if the file is damaged.
        """
        return read_image(self._files[stream][self.ids[index]])
