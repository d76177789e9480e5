"""Samples whose images are files below one folder: what all such data sets share."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from manystream.data.image import MAX_PIXELS, UnreadableImageError, read_image
from manystream.data.source import StreamSpec

Decode = Callable[[np.ndarray], np.ndarray]
"""From the values a file stores to those of the stream, both (H, W, C); its repr says all of it."""


class FileSample(NamedTuple):
    """One sample.

    Attributes:
        id: its name.
        target: number of its class.
        files: its file in each stream, relative to the data set's folder; None where absent.
        group: the recording or room it shows; empty if unknown.
    """

    id: str
    target: int
    files: tuple[str | None, ...]
    group: str = ""


class FileSource:
    """Labelled samples, each with a file for some of the streams. Nothing is decoded early.

    Args:
        root: the folder that the files are below.
        name: what this part of the data set is called, for example ``"train"``.
        streams: the streams in the order of the model's inputs.
        classes: class names; a target is an index into them.
        samples: the samples, each with one file or more.
        decode: by a stream's name, what is done to its files' values; others stay as stored.
        max_pixels: height × width above which a file is unreadable.

    Attributes:
        root, name, streams, classes: as given.
        ids, groups: of each of the N samples; ``groups`` is None if none is known.
        targets: class of each sample, shape (N,), int64.
        present: which streams have a file, shape (N, M), bool.

    Raises:
        ValueError: if there is no sample with a file.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        streams: Sequence[StreamSpec],
        classes: Sequence[str],
        samples: Sequence[FileSample],
        *,
        decode: Mapping[str, Decode] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.root = root
        self.name = name
        self.streams = tuple(streams)
        self.classes = tuple(classes)
        self._decode = dict(decode or {})
        self._max_pixels = max_pixels
        self._fill(samples)

    def path(self, index: int, stream: int) -> Path:
        """File of one image.

        Raises:
            ValueError: if the sample lacks that stream.
        """
        sample = self._samples[index]
        file = sample.files[stream]
        if file is None:
            raise ValueError(
                f"sample {sample.id!r} has no stream {self.streams[stream].name!r}; "
                "ask only where `present` is True"
            )
        return self.root / file

    def read(self, index: int, stream: int) -> np.ndarray:
        """Read one raw image.

        Returns:
            Shape (H, W, C); uint8, uint16 or float32.

        Raises:
            UnreadableImageError: if the file is missing, damaged or too large.
        """
        return self.decoded(self.read_stored(index, stream), index, stream)

    def read_stored(self, index: int, stream: int) -> np.ndarray:
        """Read one image with the values that its file has."""
        return read_image(self.path(index, stream), self._max_pixels)

    def decoded(self, stored: np.ndarray, index: int, stream: int) -> np.ndarray:
        """Turn the values of a file into those of its stream."""
        decode = self._decode.get(self.streams[stream].name)
        try:
            return stored if decode is None else decode(stored)
        except ValueError as error:
            raise UnreadableImageError(self.path(index, stream), str(error)) from error

    def without(self, unreadable: AbstractSet[Path]) -> FileSource:
        """Copy in which these files are absent; samples left with no stream are dropped.

        Args:
            unreadable: paths as :meth:`path` gives them; others are passed over.

        Raises:
            ValueError: if no sample is left.
        """
        remaining = copy.copy(self)
        remaining._fill([self._without(sample, unreadable) for sample in self._samples])
        return remaining

    @property
    def cache(self) -> Path:
        """Where what a survey found is kept."""
        return self.root / ".manystream" / f"survey-{self.name}.json"

    def fingerprint(self) -> str:
        """Changes with the files' names, sizes and times, and with how they are decoded."""
        digest = hashlib.sha256(repr((sorted(self._decode.items()), self._max_pixels)).encode())
        for file in self._present_files():
            digest.update(repr((file, *_stamp(self.root / file))).encode())
        return digest.hexdigest()

    def _present_files(self) -> Iterator[str]:
        for sample in self._samples:
            yield from (file for file in sample.files if file is not None)

    def _without(self, sample: FileSample, unreadable: AbstractSet[Path]) -> FileSample:
        files = (None if f is None or self.root / f in unreadable else f for f in sample.files)
        return sample._replace(files=tuple(files))

    def _fill(self, samples: Sequence[FileSample]) -> None:
        self._samples = [sample for sample in samples if any(sample.files)]
        if not self._samples:
            raise ValueError(
                f"no readable image is left in {self.root} for {self.name!r}: all {len(samples)} "
                f"samples lack the streams {', '.join(s.name for s in self.streams)}; "
                "check the files"
            )
        self.ids = [sample.id for sample in self._samples]
        groups = [sample.group for sample in self._samples]
        self.groups = groups if any(groups) else None
        self.targets = torch.tensor([sample.target for sample in self._samples])
        self.present = torch.tensor([[f is not None for f in x.files] for x in self._samples])


def file_key(file: Path) -> tuple[int, int] | None:
    """The same for two paths if and only if they lead to one file; None if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:  # A link to nowhere or to itself; reading it will say so.
        return -1, -1
    return status.st_size, status.st_mtime_ns
