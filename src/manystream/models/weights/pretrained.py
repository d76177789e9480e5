"""Weights of an ordinary ResNet for one stream."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manystream.choices import did_you_mean, first_few
from manystream.models.resnet import StreamResNet
from manystream.models.weights.state_dicts import read_state_dict

_STEM = "conv1.weight"
_HEAD = ("fc.",)
_KEYS_SHOWN = 5


@dataclass(frozen=True)
class PretrainedReport:
    """What became of a pretrained state dict.

    Attributes:
        loaded: keys that were loaded.
        adapted: keys that were loaded after a change of channels.
        left_aside: keys of its head, which a stream does not have.
    """

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    left_aside: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for what, keys in (
            ("adapted to its channels", self.adapted),
            ("left aside", self.left_aside),
        ):
            parts += [f"{what}: {', '.join(keys)}"] if keys else []
        return "; ".join(parts)


def load_pretrained_stream(
    network: StreamResNet, stream: str, source: str | Path | Mapping[str, Any]
) -> PretrainedReport:
    """Load an ordinary ResNet's weights into one stream, all of them or none.

    Names are torchvision's and timm's: ``layer1.0.conv1.weight`` goes to
    ``layer1.0.conv1.streams.<m>.weight``. The first convolution adapts to the stream's channels,
    see :func:`adapt_channels`; the classification head is left aside.

    Args:
        network: the network, changed in place.
        stream: name of the stream.
        source: a file or a state dict, see :func:`read_state_dict`.

    Raises:
        ValueError: if there is no such stream or it has no pathway of its own, or a key or shape
            does not match; nothing has been loaded then.
    """
    if stream not in network.stream_names:
        raise ValueError(
            f"pretrained names stream {stream!r}; "
            f"this model's are {', '.join(network.stream_names)}"
            f"{did_you_mean(stream, network.stream_names)}"
        )
    if network.joins_inputs:
        raise ValueError(
            f"stream {stream!r} has no pathway of its own in early fusion, which joins the "
            "channels of all streams; pretrained weights fit the other families"
        )
    given = read_state_dict(source)
    left_aside = tuple(key for key in given if key.startswith(_HEAD))
    state = {key: tensor for key, tensor in given.items() if key not in left_aside}
    number = network.stream_names.index(stream)
    own = _stream_state(network, number)
    adapted: tuple[str, ...] = ()
    if _STEM in state and _STEM in own and _adaptable(state[_STEM], own[_STEM]):
        state[_STEM] = adapt_channels(state[_STEM], own[_STEM].shape[1])
        adapted = (_STEM,)
    _check_match(state, own, stream)
    with torch.no_grad():
        for key, tensor in state.items():
            own[key].copy_(tensor)
    return PretrainedReport(tuple(state), adapted, left_aside)


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Give a first convolution another number of input channels.

    Every new channel gets the mean kernel over the old ones, times old over new channels, so that
    an image with the same value in every channel gives the same output as before.

    Args:
        weight: shape (C_out, C_in, k, k).
        channels: new number of input channels.

    Returns:
        Shape (C_out, channels, k, k).

    Example:
        >>> adapt_channels(torch.ones(1, 3, 1, 1), 1).item()
        3.0
    """
    mean = weight.mean(dim=1, keepdim=True) * (weight.shape[1] / channels)
    return mean.expand(-1, channels, -1, -1).clone()


def _adaptable(came: Tensor, due: Tensor) -> bool:
    return came.dim() == 4 and 0 < came.shape[1] != due.shape[1]


def _stream_state(network: StreamResNet, number: int) -> dict[str, Tensor]:
    """Tensors of one stream by the names of an ordinary ResNet."""
    suffix = re.compile(rf"(.*)\.streams\.{number}\.(\w+)")
    matches = ((suffix.fullmatch(key), tensor) for key, tensor in network.state_dict().items())
    return {f"{match[1]}.{match[2]}": tensor for match, tensor in matches if match}


def _check_match(state: Mapping[str, Tensor], own: Mapping[str, Tensor], stream: str) -> None:
    problems = [f"no {key}" for key in own if key not in state and not _is_counter(key)]
    problems += [f"{key} is not in a stream" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(tensor.shape)}, expected {tuple(own[key].shape)}"
        for key, tensor in state.items()
        if key in own and tensor.shape != own[key].shape
    ]
    if problems:
        raise ValueError(
            f"pretrained weights do not fit stream {stream!r}: "
            f"{first_few(problems, _KEYS_SHOWN, '; ')}; expected a ResNet of the model's depth and "
            "width; nothing was loaded"
        )


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")
