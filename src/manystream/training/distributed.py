"""Several processes that train together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor, nn

from manystream.layers import separate_norms, synchronise_norms

_T = TypeVar("_T")


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
        """Take the first process's running statistics."""
        assert self.model is not None
        _take_from_first(self.model.buffers())

    # Whoever stops their moving after a validation keeps what all have.
    on_validation_end = on_train_end = on_validation_start


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


def share_of_samples(num_samples: int, device: torch.device) -> Tensor:
    """Return by what a mean over this process's samples is weighed, so that all count alike.

    It is B_r R / (B_1 + … + B_R) for B_r samples in each of R processes, which all call it.

    Args:
        num_samples: of this process's batch.
        device: of the processes' group; nobody waits for it.

    Returns:
        Shape (), float32.
    """
    total = torch.full((), float(num_samples), device=device)
    dist.all_reduce(total)
    return num_samples * dist.get_world_size() / total.clamp(min=1)


@torch.no_grad()
def _take_from_first(tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        dist.broadcast(tensor, src=0)


class JointBatchNorm(LayerSync):
    """Lets batch norms count the present rows of all processes while Lightning trains."""

    def apply(self, model: nn.Module) -> nn.Module:
        synchronise_norms(model)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        separate_norms(model)
        return model


class Vote:
    """A number of every process, of which all of them learn the largest.

    Asking waits for nobody, and for no GPU; all processes ask and answer in the same order.

    Args:
        device: of the processes' group.
        alone: whether there is no other process.
    """

    def __init__(self, device: torch.device, *, alone: bool = False) -> None:
        self._device, self._alone = device, alone
        self._votes: Tensor | None = None
        self._wait: Callable[[], Any]

    def ask(self, number: float | Tensor) -> None:
        """Give this process's number; a tensor of shape () is on the device, and is taken over."""
        if not isinstance(number, Tensor):
            number = torch.full((), float(number), device=self._device)
        self._votes, self._wait = number, lambda: None
        if not self._alone:
            work = dist.all_reduce(number, op=dist.ReduceOp.MAX, async_op=True)
            self._wait = work.wait
        if self._device.type == "cuda":
            self._wait()  # the stream does, not the host
            self._votes = torch.empty_like(number, device="cpu", pin_memory=True)
            self._votes.copy_(number, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            self._wait = copied.synchronize

    def answer(self) -> float:
        """Return the largest number that was given when all were asked last; 0 if nobody was."""
        if self._votes is None:
            return 0
        self._wait()
        votes, self._votes = self._votes, None
        return votes.item()


def gathered(own: _T, world_size: int) -> list[_T]:
    """Collect what every process gives, by rank; all of them call it."""
    everyone: list[Any] = [own] * world_size
    if world_size > 1:
        dist.all_gather_object(everyone, own)
    return everyone


_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
"""Set by torchrun, Lightning and SLURM, in all but the first process to something above 0."""


def first_to_start() -> bool:
    """Tell whether this is the process that writes, as far as its environment tells."""
    return not any(int(os.environ.get(name, 0)) for name in _RANKS)
