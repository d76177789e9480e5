"""Modules around the functional room; each takes a StreamBatch and returns one."""

from manystream.layers.blocks import BasicBlock, Bottleneck
from manystream.layers.conv import RawConv2d, StreamConv2d
from manystream.layers.integration import IntegrationRule, LinearIntegration, ScalarIntegration
from manystream.layers.norm_act import NormLayer, StreamNormAct2d

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "IntegrationRule",
    "LinearIntegration",
    "NormLayer",
    "RawConv2d",
    "ScalarIntegration",
    "StreamConv2d",
    "StreamNormAct2d",
]
