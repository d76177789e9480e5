"""A forward and a backward pass over one shape, captured, and what all such pairs share."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from manystream.batch import StreamBatch
from manystream.functional.kernels.dispatch import launches_are_free
from manystream.functional.lanes import usable
from manystream.graphs.capture import CapturedGraph, beside
from manystream.graphs.copies import copy_gradients, leaves_of, refill, static_copy
from manystream.tasks import forward_and_loss

Loss = Callable[..., Tensor]
"""From a network's output and the target to a loss, (); see ``tasks.forward_and_loss``."""


class Shared:
    """Pool, stream and gradients of all graphs of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.stream, self.lanes = beside(torch.cuda.current_device())
        self.names = [n for n, p in network.named_parameters() if p.requires_grad]
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.grads = [torch.zeros_like(p) for p in self.parameters]
        self._pending: weakref.ref[_Pending] | None = None

    def is_pending(self) -> bool:
        """Tell whether activations of a replayed forward pass still wait for their backward."""
        pending = None if self._pending is None else self._pending()
        return pending is not None and not pending.done

    def begin(self) -> _Pending:
        """Remember that a forward pass was replayed."""
        pending = _Pending()
        self._pending = weakref.ref(pending)
        return pending

    def save_own(self) -> None:
        """Save what earlier backward passes left from the next replay."""
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            if parameter.grad is grad:
                parameter.grad = grad.clone()

    def hand_out(self, used: Sequence[bool]) -> None:
        """Give the parameters what a replay has written."""
        added: list[tuple[Tensor, Tensor]] = []
        for parameter, grad, is_used in zip(self.parameters, self.grads, used, strict=True):
            if not is_used:
                continue
            if parameter.grad is None:
                parameter.grad = grad
            else:
                added.append((parameter.grad, grad))
        if added:
            torch._foreach_add_(*map(list, zip(*added, strict=True)))


class _Pending:
    """Lives as long as somebody can ask for the backward pass."""

    done = False


class GraphPair:
    """A captured forward and backward pass over one shape."""

    def __init__(self, network: nn.Module, loss: Loss, batch: StreamBatch, shared: Shared) -> None:
        self._shared = shared
        self._batch = static_copy(batch)
        self._scale = torch.ones((), device=batch.streams[0].device)
        self._forward, self._backward = CapturedGraph(), CapturedGraph()
        with launches_are_free(), self._capturing(self._forward):
            leaves = leaves_of(shared.parameters, batch.streams[0].device.type)
            named = dict(zip(shared.names, leaves, strict=True))
            call = partial(_called, network, named)
            with usable(shared.lanes):
                value, logits = forward_and_loss(call, loss, self._batch)
        with self._capturing(self._backward):
            found = torch.autograd.grad(value, leaves, self._scale.to(value), allow_unused=True)
            copy_gradients(found, shared.grads)
        self._used = [f is not None for f in found]
        self._loss, self._logits = value.detach(), logits.detach()

    def _capturing(self, graph: CapturedGraph) -> torch.cuda.graph:
        # Other threads, a loader's for one, may talk to the device meanwhile.
        return torch.cuda.graph(
            graph,
            pool=self._shared.pool,
            stream=self._shared.stream,
            capture_error_mode="thread_local",
        )

    def replay(self, batch: StreamBatch) -> tuple[Tensor, Tensor]:
        """Loss and logits of a batch of this shape."""
        refill(self._batch, batch)
        self._forward.replay()
        anchor = torch.empty((), requires_grad=True)  # what makes autograd ask for a backward
        loss: Tensor = _Replayed.apply(anchor, self, self._loss.clone())
        return loss, self._logits.clone()

    def replay_backward(self, grad: Tensor) -> None:
        """Add to the parameters' gradients."""
        self._shared.save_own()
        self._scale.copy_(grad)
        self._backward.replay()
        self._shared.hand_out(self._used)

    def begin(self) -> _Pending:
        """Remember that a backward pass is to come."""
        return self._shared.begin()


def _called(
    network: nn.Module, parameters: dict[str, Tensor], batch: StreamBatch, **arguments: Any
) -> Any:
    return functional_call(network, parameters, (batch,), arguments)


class _Replayed(torch.autograd.Function):
    """The loss of a replayed forward pass; its backward replays the other graph."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, graph: GraphPair, loss: Tensor) -> Tensor:
        ctx.graph, ctx.pending = graph, graph.begin()
        ctx.mark_dirty(loss)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        if ctx.pending.done:
            raise RuntimeError("a replayed step has one backward pass; call the step again")
        ctx.pending.done = True
        ctx.graph.replay_backward(grad)
        return None, None, None
