"""Which part of a network a parameter belongs to: a stream's pathway, or what all share."""

from __future__ import annotations

import re
from typing import cast

import lightning.pytorch as pl
from torch import nn

from manystream.models import StreamNetwork

SHARED = "shared"
"""The part that is no stream's: the integrated pathway with its mixing weights, and the head."""

_OF_STREAM = re.compile(r"(?:^|\.)streams\.(\d+)\.")


def network_of(pl_module: pl.LightningModule) -> StreamNetwork:
    """The network that a module trains."""
    return cast(StreamNetwork, pl_module.network)


def part_names(network: StreamNetwork) -> tuple[str, ...]:
    """Parts of a network: its streams by name, then :data:`SHARED`.

    A network whose streams have no pathway of their own, as in early fusion, is all shared.
    """
    return (*network.stream_names, SHARED) if _has_pathways(network) else (SHARED,)


def named_parts(network: StreamNetwork) -> dict[str, str]:
    """Part of every parameter, by the parameter's name."""
    parts = part_names(network)
    return {name: _part(name, parts) for name, _ in network.named_parameters()}


def stream_modules(network: StreamNetwork, stream: str) -> list[nn.Module]:
    """The kernels' and norms' modules of one stream's pathway.

    Raises:
        ValueError: if the network has no pathway of that stream.
    """
    parts = part_names(network)
    if stream not in parts[:-1]:
        raise ValueError(
            f"{stream!r} has no pathway of its own in this network; its parts are "
            f"{', '.join(parts)}"
        )
    return [m for name, m in network.named_modules() if _part(f"{name}.", parts) == stream]


def _part(name: str, parts: tuple[str, ...]) -> str:
    found = _OF_STREAM.search(name)
    return SHARED if found is None or len(parts) == 1 else parts[int(found[1])]


def _has_pathways(network: StreamNetwork) -> bool:
    found = (_OF_STREAM.search(name) for name, _ in network.named_parameters())
    return len({match[1] for match in found if match}) == network.num_streams
