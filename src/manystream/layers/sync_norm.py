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
        weight = torch.ones_like(mean) if self.weight is None else self.weight
        bias = torch.zeros_like(mean) if self.bias is None else self.bias
        return sync_batch_norm(
            x, mean, var, counter, weight, bias, momentum=self.momentum, eps=self.eps
        )


def synchronise_norms(network: nn.Module) -> None:
    """Have every batch norm of a network count the rows of all processes.

    Without it, each process normalises with its own rows, and the running statistics are those of
    the first process.

    Args:
        network: changed in place; parameters, buffers and their names stay what they are.

    Raises:
        ValueError: if no process group is set up, or a norm keeps no running statistics.
    """
    if not torch.distributed.is_initialized():
        raise ValueError("no process group is set up; call torch.distributed.init_process_group")
    for name, module in network.named_modules():
        if type(module) is nn.BatchNorm2d and module.running_mean is None:
            raise ValueError(
                f"{name} keeps no running statistics (track_running_stats=False), with which "
                "processes that have too few rows normalise; build it with track_running_stats=True"
            )
    _exchange(network, nn.BatchNorm2d, SyncBatchNorm2d)


def separate_norms(network: nn.Module) -> None:
    """Undo :func:`synchronise_norms`."""
    _exchange(network, SyncBatchNorm2d, nn.BatchNorm2d)


def _exchange(network: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    for module in network.modules():
        if type(module) is old:
            module.__class__ = new  # they differ in forward only, so optimizers need not be told
