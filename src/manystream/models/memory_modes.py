"""The memory modes: which outputs the backward pass rebuilds instead of keeping.

======== =================================== =============================================
mode     kept                                rebuilt
======== =================================== =============================================
fast     all but the stem's norm and the     these two
         max-pool's index
balanced raw outputs, block outputs          what norms and activations give inside blocks,
                                             and what the stem's pool gives
lean     the streams' raw outputs, the       also the whole integrated pathway and the other
         first and every third block's       blocks' outputs
         output
min      block outputs                       all that lies inside blocks
======== =================================== =============================================

All modes give the same gradients and move running statistics once. What was changed in place
before the backward pass is refused where autograd refuses it in ``fast``. Under autocast ``fast``
keeps its copies of kernels, which the others make anew: those refuse a kernel that was changed.

What ``min`` saves over ``lean`` is inside bottlenecks; with basic blocks the stem decides, and
``lean`` takes as little.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args, runtime_checkable

from torch import nn

from manystream.functional.remat import Rebuild, Rebuilds

MemoryMode = Literal["fast", "balanced", "lean", "min"]

_REBUILD: dict[str, Rebuild] = {
    "fast": Rebuild(),
    "balanced": Rebuild(norms=True),
    "lean": Rebuild(norms=True, integrated=True),
    "min": Rebuild(norms=True, integrated=True, raw=True),
}

_LEAN_KEEPS_EVERY = 3
"""In lean, the outputs of the first block and of one block in so many are kept.

Measured on an H200 at 224 pixels in bf16: peak of a step in MB for ResNet-18 at batch 32 and at 128
and ResNet-50 at batch 32. Every block 482, 1847, 2391; every second 455, 1794, 1870; every third
596, 2346, 1781; the first and every third 425, 1658, 1926; none 602, 2346, 2735. A longer chain
keeps less, but rebuilds more at once, and the first block's chain would reach into the stem.
"""


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
    """Tell every layer of a network what to rebuild.

    The layers do it in whichever way they are called, and find what the ones before them gave.

    Args:
        network: any module with layers of :mod:`manystream.layers` inside; a
            :class:`~manystream.models.StreamNetwork` has the attribute ``memory`` for it.
        mode: the mode.

    Raises:
        ValueError: if the mode is unknown.

    Example:
        >>> from manystream.layers import BasicBlock
        >>> network = nn.Sequential(BasicBlock(2, 8, 8), BasicBlock(2, 8, 16, stride=2))
        >>> apply_memory_mode(network, "lean")
    """
    check_memory_mode(mode)
    for module in network.modules():
        if isinstance(module, Rebuilds):
            module.set_rebuild(_REBUILD[mode])
    blocks = [module for module in network.modules() if isinstance(module, KeepsOutput)]
    for number, block in enumerate(blocks, start=1):
        if mode != "lean" or number == 1 or number % _LEAN_KEEPS_EVERY == 0:
            block.keep_output()


@runtime_checkable
class KeepsOutput(Protocol):
    """A block, from whose output what is in it can be rebuilt."""

    def keep_output(self) -> None:
        """Keep what the block gives, whatever else is rebuilt."""
