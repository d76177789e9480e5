"""The families of network: which integration rule, and which norm the integrated pathway has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from manystream.choices import did_you_mean
from manystream.layers import IntegrationRule, LinearIntegration, NormLayer, ScalarIntegration
from manystream.layers.integration import kaiming_uniform_


@dataclass(frozen=True)
class Family:
    """What tells one family from another.

    Attributes:
        integration: the rule that mixes raw outputs; None keeps the streams apart up to the head,
            which joins their features.
        integrated_norm: norm of the integrated pathway, if there is one.
        joins_inputs: whether the images are joined along their channels into one stream.
        single: whether the network has one stream only.
    """

    integration: IntegrationRule | None = None
    integrated_norm: NormLayer | None = None
    joins_inputs: bool = False
    single: bool = False


def single_group_norm(num_channels: int) -> nn.GroupNorm:
    """Group norm over all channels of a sample, whose result no other sample changes."""
    return nn.GroupNorm(1, num_channels)


FAMILIES: dict[str, Family] = {
    "li_net3": Family(LinearIntegration, nn.BatchNorm2d),
    "li_net3_soma": Family(
        partial(LinearIntegration, init_stream=kaiming_uniform_, init_integrated=kaiming_uniform_),
        single_group_norm,
    ),
    "direct_mixing_conv": Family(ScalarIntegration, single_group_norm),
    # What users compare with: ordinary ResNets.
    "late_fusion": Family(),
    "early_fusion": Family(joins_inputs=True),
    "single_stream": Family(single=True),
}


def has_batch_norm(name: str) -> bool:
    """Tell whether the integrated pathway of a family has a batch norm, so may have several."""
    return family(name).integrated_norm is nn.BatchNorm2d


def family(name: str) -> Family:
    """Look a family up by its name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in FAMILIES:
        raise ValueError(
            f"unknown family {name!r}; expected one of {', '.join(FAMILIES)}"
            f"{did_you_mean(name, FAMILIES)}"
        )
    return FAMILIES[name]
