"""Checkpoints of the original implementation: what their keys say, and how they map to ours."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manystream.choices import first_few
from manystream.models.resnet import StreamResNet
from manystream.models.weights.state_dicts import read_state_dict

_logger = logging.getLogger(__name__)

# Auxiliary heads that watch each stream in training, and what the first layer has for the
# integrated input that it lacks: an empty kernel and, in one family, a scalar.
_LEFT_ASIDE = re.compile(r"fc_streams\..*|conv1\.integrated_(weight|mixing_scalar)")

_CONV = r"((?:.*\.)?(?:conv\d|downsample\.0))"
_NORM = r"((?:.*\.)?(?:bn\d|downsample\.1))"

# From our keys to the original's. A layer's norms share one counter there.
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"{_CONV}\.streams\.(\d+)\.weight", r"\1.stream_weights.\2"),
        (rf"{_CONV}\.integration\.stream_weights\.(\d+)", r"\1.integration_from_streams.\2"),
        (rf"{_CONV}\.integration\.stream_scalars\.(\d+)", r"\1.stream_mixing_scalars.\2"),
        (rf"{_CONV}\.integration\.integrated_scalar", r"\1.integrated_mixing_scalar"),
        (rf"{_CONV}\.integration\.integrated_weight", r"\1.integrated_weight"),
        (rf"{_NORM}\..*\.?num_batches_tracked", r"\1.num_batches_tracked"),
        (rf"{_NORM}\.streams\.(\d+)\.weight", r"\1.stream_weights.\2"),
        (rf"{_NORM}\.streams\.(\d+)\.bias", r"\1.stream_biases.\2"),
        (rf"{_NORM}\.streams\.(\d+)\.running_(mean|var)", r"\1.stream\2_running_\3"),
        (rf"{_NORM}\.integrated\.running_(mean|var)", r"\1.integrated_running_\2"),
        (rf"{_NORM}\.integrated\.(weight|bias)", r"\1.integrated_{norm}\2"),
        (r"(fc\..*)", r"\1"),
    )
)

# Where a key names a stream; all of them count, so that one that is lost in part is missed.
_STREAM_NUMBER = re.compile(
    r"(?:stream_weights|stream_biases|integration_from_streams|stream_mixing_scalars|fc_streams)"
    r"\.(\d+)|\.stream(\d+)_running_"
)

_FAMILY_OF = {  # (scalars mix the streams, group norm on the integrated pathway)
    (False, False): "li_net3",
    (False, True): "li_net3_soma",
    (True, True): "direct_mixing_conv",
}

_KEYS_SHOWN = 5


@dataclass(frozen=True)
class OriginalCheckpoint:
    """A checkpoint of the original implementation, understood.

    Attributes:
        layout: arguments of :class:`StreamResNet`, inferred from the keys.
        state: its tensors under our keys.
        left_aside: its keys that are no part of the network.
    """

    layout: dict[str, Any]
    state: dict[str, Tensor]
    left_aside: tuple[str, ...]


def load_original(source: str | Path | Mapping[str, Any]) -> StreamResNet:
    """Build the network of an original checkpoint and load it; what is left aside is logged.

    Args:
        source: a file or a state dict, see :func:`read_state_dict`.

    Returns:
        The network, in the checkpoint's floating-point type, in training mode.

    Raises:
        ValueError: as :func:`read_original`.
    """
    checkpoint = read_original(source)
    network = StreamResNet(**checkpoint.layout)
    network.to(checkpoint.state["fc.weight"].dtype)
    network.load_state_dict(checkpoint.state)
    if checkpoint.left_aside:
        _logger.warning("left aside: %s", ", ".join(checkpoint.left_aside))
    return network


def read_original(source: str | Path | Mapping[str, Any]) -> OriginalCheckpoint:
    """Infer family, block, layers, widths, streams and classes, and translate every key.

    Args:
        source: a file or a state dict, see :func:`read_state_dict`.

    Raises:
        ValueError: if it cannot be opened, or it is of another network, of mixed families,
            truncated or lacks a stream; the first offending keys are named.
    """
    given = read_state_dict(source)
    left_aside = tuple(key for key in given if _LEFT_ASIDE.fullmatch(key))
    state = {key: tensor for key, tensor in given.items() if key not in left_aside}
    layout = infer_layout(given)
    with torch.device("meta"):  # names and shapes only; nothing is initialised
        expected = StreamResNet(**layout).state_dict()
    names = {ours: original_key(ours, layout["family"]) for ours in expected}
    _check_keys(state, expected, names)
    translated = {ours: state[original] for ours, original in names.items()}
    return OriginalCheckpoint(layout, translated, left_aside)


def infer_layout(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read a network's layout off the original's keys and shapes.

    Args:
        state: tensors by the original's keys.

    Returns:
        Arguments of :class:`StreamResNet`.

    Raises:
        ValueError: if the keys are of another network or of mixed families.
    """
    named = {int(m[1] or m[2]): key for key in state if (m := _STREAM_NUMBER.search(key))}
    if not named:
        raise ValueError(
            f"not a checkpoint of the original implementation: its keys begin {_shown(state)}; "
            "expected conv1.stream_weights.0, layer1.0.conv1.stream_weights.0, …, fc.weight"
        )
    stems = [f"conv1.stream_weights.{m}" for m in range(max(named) + 1)]
    lost = [m for m in named if stems[m] not in state]
    if lost:
        raise ValueError(
            f"the checkpoint is truncated or lacks a stream: expected {stems[lost[0]]}, "
            f"since it has {named[lost[0]]}"
        )
    first_convs = [f"layer{stage}.0.conv1.stream_weights.0" for stage in range(1, 5)]
    _check_present(state, [*stems, *first_convs, "fc.weight"])
    _check_kernels(state, [*stems, *first_convs], num_dimensions=4)
    _check_kernels(state, ["fc.weight"], num_dimensions=2)
    bottleneck = any(key.startswith("layer1.0.conv3.") for key in state)
    return {
        "family": _infer_family(state),
        "block": "bottleneck" if bottleneck else "basic",
        "layers": tuple(_num_blocks(state, stage) for stage in range(1, 5)),
        "widths": tuple(state[key].shape[0] for key in first_convs),
        "in_channels": [state[key].shape[1] for key in stems],
        "num_classes": state["fc.weight"].shape[0],
    }


def original_key(key: str, family: str) -> str:
    """Name of one of our tensors in the original implementation.

    Example:
        >>> original_key("layer1.0.conv1.streams.1.weight", "li_net3")
        'layer1.0.conv1.stream_weights.1'
    """
    norm = "" if family == "li_net3" else "groupnorm."
    for pattern, replacement in _RULES:
        match = pattern.fullmatch(key)
        if match:
            return match.expand(replacement).replace("{norm}", norm)
    raise ValueError(f"no name for {key!r} in the original implementation")


def _infer_family(state: Mapping[str, Tensor]) -> str:
    linear = [key for key in state if ".integration_from_streams." in key]
    scalar = [key for key in state if ".stream_mixing_scalars." in key]
    group = [key for key in state if ".integrated_groupnorm." in key]
    batch = [key for key in state if key.endswith(".integrated_running_mean")]
    for one, other in ((linear, scalar), (group, batch)):
        if one and other:
            raise ValueError(
                f"the checkpoint mixes families: {one[0]} beside {other[0]}; expected one rule "
                "and one integrated norm throughout"
            )
    family = _FAMILY_OF.get((bool(scalar), bool(group)))
    if family is None or not (linear or scalar):
        first = (scalar or batch or list(state))[0]
        raise ValueError(
            f"the checkpoint is of no known family: it has {first}; "
            f"expected one of {', '.join(_FAMILY_OF.values())}"
        )
    return family


def _num_blocks(state: Mapping[str, Tensor], stage: int) -> int:
    numbers = {int(m[1]) for key in state if (m := re.match(rf"layer{stage}\.(\d+)\.", key))}
    expected = set(range(len(numbers)))
    _check_present(
        state, [f"layer{stage}.{number}.conv1.stream_weights.0" for number in expected - numbers]
    )
    return len(numbers)


def _check_kernels(state: Mapping[str, Tensor], keys: Sequence[str], num_dimensions: int) -> None:
    wrong = [
        f"{key} is {state[key].dtype} of shape {tuple(state[key].shape)}"
        for key in keys
        if state[key].dim() != num_dimensions or not state[key].is_floating_point()
    ]
    if wrong:
        raise ValueError(
            f"the checkpoint has tensors of other shapes: {_shown(wrong, '; ')}; "
            f"expected floating point with {num_dimensions} dimensions"
        )


def _check_present(state: Mapping[str, Tensor], keys: Sequence[str]) -> None:
    missing = [key for key in dict.fromkeys(keys) if key not in state]
    if missing:
        raise ValueError(
            f"the checkpoint is truncated or lacks a stream: expected {_shown(missing)}"
        )


def _check_keys(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], names: Mapping[str, str]
) -> None:
    _check_present(state, list(names.values()))
    known = set(names.values())
    unexpected = [key for key in state if key not in known]
    if unexpected:
        raise ValueError(f"the checkpoint has keys of another network: {_shown(unexpected)}")
    wrong = [
        f"{names[ours]} is {tuple(state[names[ours]].shape)}, expected {tuple(tensor.shape)}"
        for ours, tensor in expected.items()
        if state[names[ours]].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"the checkpoint has tensors of other shapes: {_shown(wrong, '; ')}")


def _shown(items: Iterable[str], separator: str = ", ") -> str:
    return first_few(items, _KEYS_SHOWN, separator)
