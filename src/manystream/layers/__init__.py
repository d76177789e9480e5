"""Modules around the functional room; each takes a StreamBatch and returns one."""

from manystream.layers.blocks import BasicBlock, Bottleneck, ConvNorm, conv_norm_act
from manystream.layers.conv import RawConv2d, StreamConv2d
from manystream.layers.integration import (
    Fused,
    IntegrationRule,
    LinearIntegration,
    ScalarIntegration,
    SumIntegration,
)
from manystream.layers.norm_act import (
    ActLayer,
    NormLayer,
    StreamNormAct2d,
    SubsetNorms,
    SyncBatchNorm2d,
    separate_norms,
    synchronise_norms,
)

__all__ = [
    "ActLayer",
    "BasicBlock",
    "Bottleneck",
    "ConvNorm",
    "Fused",
    "IntegrationRule",
    "LinearIntegration",
    "NormLayer",
    "RawConv2d",
    "ScalarIntegration",
    "StreamConv2d",
    "StreamNormAct2d",
    "SubsetNorms",
    "SumIntegration",
    "SyncBatchNorm2d",
    "conv_norm_act",
    "separate_norms",
    "synchronise_norms",
]
