"""What a data set must offer: who has which stream, the labels, and one image at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

StreamKind = Literal["color", "depth", "other"]


@dataclass(frozen=True)
class StreamSpec:
    """One stream of a data set.

    Attributes:
        name: what the stream is called at the model's edge, for example ``"rgb"``.
        channels: channels of its images.
        kind: how its values are treated. ``"color"``: 8-bit intensities, colour is augmented.
            ``"depth"``: a range, where 0 means no reading. ``"other"``: plain values.
        unit: ``"m"`` if depth is in metres; empty if it is as stored, whatever that is.
    """

    name: str
    channels: int
    kind: StreamKind = "other"
    unit: Literal["", "m"] = ""

    def __str__(self) -> str:
        """As messages name it."""
        unit = f" in {self.unit}" if self.unit else ""
        return f"{self.name} ({self.channels} of {self.kind}{unit})"


class Source(Protocol):
    """Labelled samples of several streams, read one image at a time.

    Attributes:
        streams: the streams, in the order of the model's inputs; M of them.
        classes: class names; a target is an index into them.
        ids: a name for each of the N samples, used in messages and predictions.
        targets: class of each sample, shape (N,), int64.
        present: which streams each sample has, shape (N, M), bool. Every row has at least one.
    """

    @property
    def streams(self) -> tuple[StreamSpec, ...]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def present(self) -> Tensor: ...

    def read(self, index: int, stream: int) -> np.ndarray:
        """Read one raw image, never called for an absent one.

        Args:
            index: number of the sample.
            stream: number of the stream.

        Returns:
            Shape (H, W, C); uint8, uint16 or float32, with the values as stored.
        """
        ...


@runtime_checkable
class DecodingSource(Protocol):
    """A source whose files store other values than its streams have, for example millimetres."""

    def read_stored(self, index: int, stream: int) -> np.ndarray:
        """Read one raw image as :meth:`Source.read` does, with the values that its file has."""
        ...

    def decoded(self, stored: np.ndarray, index: int, stream: int) -> np.ndarray:
        """Turn the values of a file into those of its stream."""
        ...


def read_with_dtype(source: Source, index: int, stream: int) -> tuple[np.ndarray, str]:
    """Read one raw image, and say in which dtype its file has it.

    Raises:
        UnreadableImageError: if it is damaged.
    """
    if isinstance(source, DecodingSource):
        stored = source.read_stored(index, stream)
        return source.decoded(stored, index, stream), str(stored.dtype)
    pixels = source.read(index, stream)
    return pixels, str(pixels.dtype)


def groups_of(source: Source) -> Sequence[str] | None:
    """Which recording or room each sample shows, by name; None if the source does not know.

    Samples of one group look alike, so no group may lie on both sides of a split.
    """
    groups: Sequence[str] | None = getattr(source, "groups", None)
    return groups
