"""The memory modes: which outputs the backward pass rebuilds instead of keeping.

======== =================================== =============================================
mode     kept                                rebuilt
======== =================================== =============================================
fast     all but the stem's norm and the     these two
         max-pool's index
balanced raw outputs, block outputs          what norms and activations give inside blocks
lean     the streams' raw outputs, every     also the whole integrated pathway and the other
         second block's output               blocks' outputs
min      block outputs                       all that lies inside blocks
======== =================================== =============================================

All modes give the same gradients and move running statistics once.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from manystream.layers import BasicBlock, Bottleneck, StreamConv2d, StreamNormAct2d

MemoryMode = Literal["fast", "balanced", "lean", "min"]

# One block's output in so many is kept. Peak of a step beside that of fast, counted on the CPU at
# 96×96, for 1, 2 and 4: lean 0.61, 0.54, 0.66 (ResNet-18) and 0.66, 0.52, 0.47 (ResNet-50); for 1
# and 2: min 0.48, 0.64 and 0.34, 0.37. A longer chain keeps less but rebuilds more at once.
_KEPT_EVERY: dict[str, int] = {"fast": 1, "balanced": 1, "lean": 2, "min": 1}


def check_memory_mode(mode: str) -> None:
    """Refuse an unknown mode.

    Raises:
        ValueError: naming the modes.
    """
    if mode not in get_args(MemoryMode):
        raise ValueError(
            f"unknown memory mode {mode!r}; expected one of {', '.join(get_args(MemoryMode))}"
        )


def apply_memory_mode(network: nn.Module, mode: MemoryMode) -> None:
    """Tell every layer of a network what to rebuild."""
    for module in network.modules():
        if isinstance(module, StreamNormAct2d):
            module.rebuild = mode != "fast"
        if isinstance(module, StreamConv2d):
            module.rebuild_integrated = mode in ("lean", "min")
            module.rebuild_streams = mode == "min"
    blocks = [m for m in network.modules() if isinstance(m, BasicBlock | Bottleneck)]
    for number, block in enumerate(blocks, start=1):
        if number % _KEPT_EVERY[mode] == 0:
            block.output_norm.rebuild = False
