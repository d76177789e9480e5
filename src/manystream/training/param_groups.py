"""Tell streams' parameters from what they share, and group them for the optimizer."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, cast

import lightning.pytorch as pl
from torch import nn

from manystream.models import StreamNetwork
from manystream.training.options import FitOptions

SHARED = "shared"
"""What is no stream's: the integrated pathway with its mixing weights, and the head."""

STEM = "stem"
"""The first convolution and its norm, on every pathway."""

# Of the network, of one that it fills images in for, or of an ensemble's.
_OF_STEM = re.compile(r"(?:network\.|streams\.\d+\.)?(?:conv1|bn1)\.")

_OF_STREAM = re.compile(r"(?:^|\.)streams\.(\d+)\.")


def network_of(pl_module: pl.LightningModule) -> StreamNetwork:
    """Return the network that a module trains."""
    return cast(StreamNetwork, pl_module.network)


def group_names(network: StreamNetwork) -> tuple[str, ...]:
    """Name the groups of a network's parameters: its streams, then :data:`SHARED`.

    A network whose streams have no pathway of their own, as in early fusion, is all shared.
    """
    found = (_OF_STREAM.search(name) for name, _ in network.named_parameters())
    has_pathways = len({match[1] for match in found if match}) == network.num_streams
    return (*network.stream_names, SHARED) if has_pathways else (SHARED,)


def named_groups(network: StreamNetwork) -> dict[str, str]:
    """Return the group of every parameter, by the parameter's name."""
    names = group_names(network)
    return {name: _group(name, names) for name, _ in network.named_parameters()}


def stream_modules(network: StreamNetwork, stream: str) -> list[nn.Module]:
    """List the modules of one stream's pathway: those of its kernels and norms.

    Raises:
        ValueError: if the network has no pathway of that stream.
    """
    names = group_names(network)
    if stream not in names[:-1]:
        raise ValueError(
            f"{stream!r} has no pathway of its own in this network; its parameter groups are "
            f"{', '.join(names)}"
        )
    return [m for name, m in network.named_modules() if _group(f"{name}.", names) == stream]


def make_param_groups(network: StreamNetwork, options: FitOptions) -> list[dict[str, Any]]:
    """Group the trained parameters by learning rate and weight decay.

    Returns:
        Groups for an optimizer; each has beside its ``lr`` the ``multiplier`` it was made with.

    Raises:
        ValueError: if a multiplier names no group of the network.
    """
    multipliers = options.learning_rate_multipliers
    check_multipliers(network, multipliers)
    group_of = named_groups(network)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            of_stem = multipliers.get(STEM, 1.0) if _OF_STEM.match(name) else 1.0
            multiplier = multipliers.get(group_of[name], 1.0) * of_stem
            groups.setdefault((multiplier, parameter.dim() > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": options.learning_rate * multiplier,
            "weight_decay": options.weight_decay if decays else 0.0,
            "multiplier": multiplier,
        }
        for (multiplier, decays), parameters in groups.items()
    ]


def check_multipliers(network: StreamNetwork, multipliers: Collection[str]) -> None:
    """Refuse a learning rate multiplier of what the network does not have.

    Raises:
        ValueError: naming the groups that there are.
    """
    known = [*group_names(network), STEM]
    for name in multipliers:
        if name not in known:
            raise ValueError(
                f"learning_rate_multipliers names {name!r}; the network's parameter groups are "
                f"{', '.join(known)}"
            )


def _group(name: str, names: tuple[str, ...]) -> str:
    found = _OF_STREAM.search(name)
    return SHARED if found is None or len(names) == 1 else names[int(found[1])]
