"""Frames of NYU Depth v2, read one at a time from its labelled MATLAB file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from manystream.data.image import UnreadableImageError
from manystream.data.source import StreamSpec


class Frame(NamedTuple):
    """One labelled frame.

    Attributes:
        number: its position in the file, from 0.
        target: number of its class.
        scene: the room it shows.
        has: which of the streams it has.
    """

    number: int
    target: int
    scene: str
    has: tuple[bool, ...]


class NyuSource:
    """Frames of the labelled file, read from it one at a time; depth is in metres.

    Args:
        file: the labelled file.
        name: what this part is called.
        streams: colour, depth in metres, or both.
        arrays: the array of the file that holds each stream.
        classes: class names.
        frames: the samples.

    Attributes:
        root, cache: the file's folder, and where a survey of it is kept.
        streams, classes: as given.
        ids, groups: frame number as the official split counts, from 1, and scene of each sample.
        targets: class of each sample, shape (N,), int64.
        present: shape (N, M), bool; everything unless taken away.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        streams: Sequence[StreamSpec],
        arrays: Sequence[str],
        classes: Sequence[str],
        frames: Sequence[Frame],
    ) -> None:
        self.file = file
        self.root = file.parent
        self.cache = self.root / ".manystream" / f"survey-{name}.json"
        self.streams = tuple(streams)
        self.arrays = tuple(arrays)
        self.classes = tuple(classes)
        self._fill(frames)

    def path(self, index: int, stream: int) -> Path:
        """What stands for an image in messages: ``<file>/<array>/<number from 1>``."""
        return self.file / self.arrays[stream] / self.ids[index]

    def read(self, index: int, stream: int) -> np.ndarray:
        """Read one image.

        Returns:
            Colour of shape (480, 640, 3), uint8, or depth of shape (480, 640, 1), float32 metres.

        Raises:
            UnreadableImageError: if the file is damaged.
        """
        import h5py  # Only those who have such files need it.

        try:
            # Opened anew each time: a handle must not be shared with a worker process.
            with h5py.File(self.file, "r") as file:
                stored = file[self.arrays[stream]][self._frames[index].number]
        except (OSError, KeyError) as error:
            raise UnreadableImageError(self.path(index, stream), str(error)) from error
        # MATLAB stores columns first.
        return np.ascontiguousarray(np.atleast_3d(stored.T))

    def without(self, unreadable: AbstractSet[Path]) -> NyuSource:
        """Copy in which these images are absent; frames left with no stream are dropped.

        Args:
            unreadable: paths as :meth:`path` gives them.

        Raises:
            ValueError: if no frame is left.
        """
        remaining = copy.copy(self)
        remaining._fill([self._without(i, unreadable) for i in range(len(self._frames))])
        return remaining

    def fingerprint(self) -> str:
        """Changes with the file's size and time, and with which images of it these are."""
        status = self.file.stat()
        return repr((status.st_size, status.st_mtime_ns, self.arrays, self._frames))

    def _without(self, index: int, unreadable: AbstractSet[Path]) -> Frame:
        frame = self._frames[index]
        kept = (h and self.path(index, m) not in unreadable for m, h in enumerate(frame.has))
        return frame._replace(has=tuple(kept))

    def _fill(self, frames: Sequence[Frame]) -> None:
        self._frames = [frame for frame in frames if any(frame.has)]
        if not self._frames:
            raise ValueError(f"no frame of {self.file} is left; expected one or more")
        self.ids = [f"{frame.number + 1:04d}" for frame in self._frames]
        self.groups = [frame.scene for frame in self._frames]
        self.targets = torch.tensor([frame.target for frame in self._frames])
        self.present = torch.tensor([frame.has for frame in self._frames])
