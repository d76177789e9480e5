"""What every network of several streams shares: named streams at its edge, and the boundary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from manystream.batch import Inputs, StreamBatch, make_batch
from manystream.models.memory_modes import MemoryMode, apply_memory_mode


class StreamNetwork(nn.Module):
    """A network on several image streams; subclasses define :meth:`forward_batch`.

    It knows nothing of tasks: what its outputs mean, a task says.

    Args:
        in_channels: channels of each stream by name, or in order (then named "0", "1", …).
        num_classes: outputs of its head, for classification the classes.

    Raises:
        ValueError: if there is no stream, one without channels, or no output.
    """

    def __init__(self, in_channels: Mapping[str, int] | Sequence[int], num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected at least 1")
        if not isinstance(in_channels, Mapping):
            in_channels = {str(m): c for m, c in enumerate(in_channels)}
        if not in_channels or min(in_channels.values()) < 1:
            raise ValueError(
                f"streams are {dict(in_channels)}; expected at least one, each with its number of "
                'channels, for example {"rgb": 3, "depth": 1}'
            )
        self.in_channels = dict(in_channels)
        self.num_classes = num_classes
        self._memory: MemoryMode = "fast"

    @property
    def memory(self) -> MemoryMode:
        """What a training step keeps; gradients are the same in every mode.

        Setting it tells the layers that there are by then, see
        :mod:`manystream.models.memory_modes`.
        """
        return self._memory

    @memory.setter
    def memory(self, mode: MemoryMode) -> None:
        apply_memory_mode(self, mode)
        self._memory = mode

    @property
    def num_streams(self) -> int:
        """Number of streams M."""
        return len(self.in_channels)

    @property
    def stream_names(self) -> tuple[str, ...]:
        """Names of the streams, in the order of the inputs."""
        return tuple(self.in_channels)

    def forward(
        self,
        inputs: Inputs | StreamBatch,
        present: Tensor | None = None,
        *,
        blanked_mask: Mapping[str, Tensor] | Mapping[int, Tensor] | None = None,
        by_view: bool = False,
    ) -> Tensor:
        """Answer for a batch.

        Args:
            inputs: full batches, one of shape (B, C_m, H, W) per stream: a list in the model's
                order, a dict by name, or a :class:`StreamBatch`. A stream that is None in the
                list or missing from the dict is absent from every sample.
            present: True where sample b has stream m, shape (B, M), bool, best on the CPU. Absent
                images are never read; they may hold anything.
            blanked_mask: for some streams, by number or name, True where the sample lacks it,
                shape (B,), bool.
            by_view: whether to answer for every view of a :class:`StreamBatch`, in their order,
                instead of each sample's full view.

        Returns:
            Logits in the order of the inputs, shape (B, num_classes); or of the views, shape
            (V, num_classes).

        Raises:
            ValueError: if the inputs do not fit the model or a sample has no stream.
        """
        batch = self.to_batch(inputs, present, blanked_mask)
        output = self.forward_batch(batch)
        return output if by_view else batch.views.restore(output)

    def to_batch(
        self,
        inputs: Inputs | StreamBatch,
        present: Tensor | None = None,
        blanked_mask: Mapping[str, Tensor] | Mapping[int, Tensor] | None = None,
    ) -> StreamBatch:
        """Check inputs and make them compact and channels-last; arguments as :meth:`forward`."""
        if not isinstance(inputs, StreamBatch):
            inputs = make_batch(
                inputs, self.in_channels, present=present, blanked_mask=blanked_mask
            )
        elif present is not None or blanked_mask is not None:
            raise ValueError(
                "a StreamBatch already says who is present; leave present and blanked_mask out"
            )
        self._check_channels(inputs)
        return inputs.map(lambda x: x.contiguous(memory_format=torch.channels_last))

    def forward_batch(self, batch: StreamBatch) -> Tensor:
        """Logits of a compact batch's views in their order, shape (V, num_classes)."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Give ``type`` and the plain values that the network is built from again.

        Raises:
            ValueError: if its class does not say.
        """
        raise ValueError(
            f"{type(self).__name__} does not say how it is built, which a model file holds; save "
            "its state_dict() instead"
        )

    def _check_channels(self, batch: StreamBatch) -> None:
        came = [x.shape[1] for x in batch.streams]
        if came != list(self.in_channels.values()):
            raise ValueError(
                f"the batch has streams of {came} channels; this model expects {self.in_channels}"
            )


def check_answers_by_view(network: StreamNetwork) -> None:
    """Refuse a network that can be asked for its full views only.

    Raises:
        ValueError: if its class has a ``forward`` of its own that does not take ``by_view``.
    """
    takes = signature(network.forward).parameters
    if "by_view" not in takes and not any(p.kind is Parameter.VAR_KEYWORD for p in takes.values()):
        raise ValueError(
            f"{type(network).__name__}.forward does not take by_view, with which a network answers "
            "for every subset of the streams at once; override forward_batch in its place, or take "
            "by_view as StreamNetwork.forward does"
        )
