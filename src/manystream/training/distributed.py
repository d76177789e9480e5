"""Several processes that train together."""

from __future__ import annotations

import os

from lightning.pytorch.plugins import LayerSync
from torch import nn

from manystream.layers.sync_norm import separate_norms, synchronise_norms


class JointBatchNorm(LayerSync):
    """Has Lightning let batch norms count the present rows of all processes."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Join them, when the processes have met."""
        synchronise_norms(model)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Separate them."""
        separate_norms(model)
        return model


_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
"""Set by torchrun, Lightning and SLURM, in all but the first process to something above 0."""


def first_to_start() -> bool:
    """Whether this is the process that writes, as far as its environment tells."""
    return not any(int(os.environ.get(name, 0)) for name in _RANKS)
