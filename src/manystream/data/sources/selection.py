"""Some of a source's streams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from manystream.data.source import Source


class SelectedStreams:
    """A source seen as if it had fewer streams; samples that have none of them are left out.

    Args:
        source: the whole source.
        names: names of the streams to keep, in the order to keep them in.

    Raises:
        ValueError: if the source has no stream of a name, or no sample is left.
    """

    def __init__(self, source: Source, names: Sequence[str]) -> None:
        available = [spec.name for spec in source.streams]
        missing = [name for name in names if name not in available]
        if missing:
            raise ValueError(f"no stream {missing[0]!r} in the data; it has {', '.join(available)}")
        self._source = source
        self._numbers = [available.index(name) for name in names]
        has_some = source.present[:, self._numbers].any(dim=1)
        if not has_some.any():
            raise ValueError(f"no sample has any of the streams {', '.join(names)}")
        self._samples = has_some.nonzero().flatten()
        self.streams = tuple(source.streams[m] for m in self._numbers)
        self.classes = source.classes
        self.ids = [source.ids[i] for i in self._samples.tolist()]
        self.targets = source.targets[self._samples]
        self.present = source.present[self._samples][:, self._numbers]

    def read(self, index: int, stream: int) -> np.ndarray:
        """Read one raw image, shape (H, W, C)."""
        return self._source.read(int(self._samples[index]), self._numbers[stream])
