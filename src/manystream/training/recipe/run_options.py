"""On how many devices a run trains, and how often its state is saved."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from manystream.training.distributed import AFTER_BACKWARD
from manystream.training.recipe.ranges import check_at_least


@dataclass
class RunOptions:
    """Devices, and states within an epoch.

    Raises:
        ValueError: if a number is out of its range, or does not fit what torchrun started.
    """

    devices: int = 1
    """Devices to train on, each with a process and ``batch_size`` samples of its own. Under
    torchrun, the processes it started."""
    strategy: str = "auto"
    """How several processes train together, by Lightning's names; auto is ddp_after_backward, with
    which steps may be replayed from CUDA graphs."""
    sync_batchnorm: bool = False
    """Whether batch norms count the present rows of all processes together. Memory modes then keep
    what these norms give."""
    checkpoint_every_steps: int | None = None
    """Optimizer steps between states within an epoch; null saves one before each epoch."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "devices")
        check_at_least(self, 1, "checkpoint_every_steps")

    def distribution(self) -> dict[str, Any]:
        """Arguments of ``lightning.pytorch.Trainer``."""
        devices, nodes = self.devices, 1
        if torch.distributed.is_torchelastic_launched():
            devices = int(os.environ["LOCAL_WORLD_SIZE"])
            nodes = int(os.environ["WORLD_SIZE"]) // devices
            if self.devices not in (1, devices):
                raise ValueError(
                    f"devices is {self.devices}, but torchrun started {devices} processes; leave "
                    "devices out"
                )
        together = self.strategy == "auto" and devices * nodes > 1
        strategy = AFTER_BACKWARD if together else self.strategy
        return {"devices": devices, "num_nodes": nodes, "strategy": strategy}
