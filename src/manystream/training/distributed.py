"""Several processes that train together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor, nn

from manystream.layers import separate_norms, synchronise_norms


class AfterBackwardStrategy(DDPStrategy):
    """Processes that average their gradients once, when a backward pass has ended.

    Torch's DistributedDataParallel averages while the pass runs, which asks autograd for each
    gradient as it appears; a pass replayed from a CUDA graph has none to ask. Hooks that come
    before the optimizer's step see the mean; ``on_after_backward`` sees what this process found.

    Running statistics are the first process's in validation, after it, and at the end.
    """

    _is_last_backward = True

    def configure_ddp(self) -> None:
        """Begin with the first process's weights; the module stays as it is."""
        assert self.model is not None
        _take_from_first([*self.model.parameters(), *self.model.buffers()])

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Let gradients add up, each process's by themselves."""
        self._is_last_backward = False
        try:
            yield
        finally:
            self._is_last_backward = True

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average what has added up."""
        assert self.model is not None
        if self._is_last_backward:
            average_gradients(self.model.parameters())

    def on_validation_start(self) -> None:
        """Validate with the first process's running statistics."""
        self._take_statistics()

    def on_validation_end(self) -> None:
        """Go on with them: whoever stops their moving now keeps what all have."""
        self._take_statistics()

    def on_train_end(self) -> None:
        """Leave the first process's running statistics in all."""
        self._take_statistics()

    def _take_statistics(self) -> None:
        assert self.model is not None
        _take_from_first(self.model.buffers())


AFTER_BACKWARD = "ddp_after_backward"
StrategyRegistry.register(
    AFTER_BACKWARD, AfterBackwardStrategy, AfterBackwardStrategy.__doc__, override=True
)


def exchanges_during_backward(trainer: pl.Trainer) -> bool:
    """Tell whether processes that train together wait for each gradient as it appears."""
    return trainer.world_size > 1 and not isinstance(trainer.strategy, AfterBackwardStrategy)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over all processes, which all call it.

    They travel together. Where a process has no gradient, it counts as zero; so it does where none
    has one, and an optimizer that decays weights then moves that parameter.

    Args:
        parameters: the same in every process; those that want no gradient are passed over.
    """
    groups: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            groups.setdefault(parameter.dtype, []).append(parameter)
    for group in groups.values():
        joined = group[0].new_zeros(sum(p.numel() for p in group))
        # Laid out as the parameters: a gradient may lie otherwise, and otherwise in each process.
        means = [
            piece.as_strided(p.shape, torch.empty_like(p).stride())
            for piece, p in zip(joined.split([p.numel() for p in group]), group, strict=True)
        ]
        own = [(mean, p.grad) for mean, p in zip(means, group, strict=True) if p.grad is not None]
        if own:
            torch._foreach_copy_([mean for mean, _ in own], [grad for _, grad in own])
        joined.div_(dist.get_world_size())
        dist.all_reduce(joined)
        for parameter, mean in zip(group, means, strict=True):
            parameter.grad = mean


@torch.no_grad()
def _take_from_first(tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        dist.broadcast(tensor, src=0)


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


class Vote:
    """A number of every process, of which all of them learn the largest.

    Asking waits for nobody, and for no GPU; all processes ask and answer in the same order.

    Args:
        device: of the processes' group.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._votes: Tensor | None = None
        self._ready: Callable[[], Any]

    def ask(self, number: float) -> None:
        """Give this process's number."""
        votes = torch.full((), float(number), device=self._device)
        work = dist.all_reduce(votes, op=dist.ReduceOp.MAX, async_op=True)
        if self._device.type == "cuda":
            work.wait()  # the stream does, not the host
            self._votes = torch.empty_like(votes, device="cpu", pin_memory=True)
            self._votes.copy_(votes, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            self._ready = copied.synchronize
        else:
            self._votes, self._ready = votes, work.wait

    def answer(self) -> float:
        """Return the largest number that was given when all were asked last; 0 if nobody was."""
        if self._votes is None:
            return 0
        self._ready()
        votes, self._votes = self._votes, None
        return votes.item()


_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
"""Set by torchrun, Lightning and SLURM, in all but the first process to something above 0."""


def first_to_start() -> bool:
    """Tell whether this is the process that writes, as far as its environment tells."""
    return not any(int(os.environ.get(name, 0)) for name in _RANKS)
