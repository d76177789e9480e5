"""Batch norms that count the present rows of every process that trains together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manystream.functional.sync_norm import sync_batch_norm


class SyncBatchNorm2d(nn.BatchNorm2d):
    """A batch norm with joint statistics in training; see :func:`sync_batch_norm`.

    Make a network's with :func:`synchronise_norms`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B_r, C, H, W), which stays; B_r may be 0."""
        mean, var, counter = self.running_mean, self.running_var, self.num_batches_tracked
        if not self.training or mean is None or var is None or counter is None:
            return super().forward(x)
        assert self.momentum is not None
        return sync_batch_norm(
            x, mean, var, counter, self.weight, self.bias, momentum=self.momentum, eps=self.eps
        )


def synchronise_norms(network: nn.Module) -> None:
    """Have every batch norm of a network count the rows of all processes.

    Without it, each process normalises with its own rows, and the running statistics are those of
    the first process.

    Args:
        network: changed in place; parameters, buffers and their names stay what they are.

    Raises:
        ValueError: if no process group is set up.
    """
    if not torch.distributed.is_initialized():
        raise ValueError("no process group is set up; call torch.distributed.init_process_group")
    _exchange(network, nn.BatchNorm2d, SyncBatchNorm2d)


def separate_norms(network: nn.Module) -> None:
    """Undo :func:`synchronise_norms`."""
    _exchange(network, SyncBatchNorm2d, nn.BatchNorm2d)


def _exchange(network: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    for module in network.modules():
        if type(module) is old:
            module.__class__ = new  # they differ in forward only, so optimizers need not be told
