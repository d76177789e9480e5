"""The families of network: which integration rule, and which norm the integrated pathway has."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from manystream.layers import IntegrationRule, LinearIntegration, NormLayer


@dataclass(frozen=True)
class Family:
    """What tells one family from another.

    Attributes:
        integration: the rule that mixes raw outputs.
        integrated_norm: norm of the integrated pathway.
    """

    integration: IntegrationRule
    integrated_norm: NormLayer


FAMILIES: dict[str, Family] = {
    "li_net3": Family(LinearIntegration, nn.BatchNorm2d),
}


def family(name: str) -> Family:
    """Look a family up by its name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown family {name!r}; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
