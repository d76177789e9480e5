"""A training step replayed from CUDA graphs, one pair per shape: the host launches two things."""

from __future__ import annotations

import gc
import os
import warnings
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from manystream.batch import StreamBatch
from manystream.functional.capture import CapturedGraph
from manystream.functional.kernels.dispatch import launches_are_free
from manystream.functional.lanes import Lanes, usable

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits, (B, classes), and targets, (B,), to a loss, ()."""


class GraphedStep:
    r"""Forward and loss of a network, and the backward pass, replayed where the shape is known.

    ``loss, logits = step(batch)`` is what calling the network and the loss is, and
    ``loss.backward()`` adds to the parameters' ``grad`` as always: scaled losses, gradient
    accumulation and clipping work. The first batch of a shape runs eagerly and the second is
    captured; a shape is the rows that each stream has, and where they stand. Whatever cannot be
    replayed runs eagerly: more shapes than ``max_graphs``, a CPU, evaluation, a second forward
    pass before the first one's backward. All graphs share one pool of memory.

    A shape whose capture fails, for want of memory or because the loss waits for the device, runs
    eagerly from then on, and a warning says why. What its capture took is given back with the pool;
    other shapes are captured anew when they come again.

    Captured work reads the parameters where they are. A parameter that moves, or stops wanting a
    gradient, and a module that changes between training and evaluation begin new graphs. Processes
    that train together average gradients after the backward pass, by
    :func:`manystream.training.average_gradients`.

    Args:
        network: takes a :class:`StreamBatch` and gives logits, (B, classes).
        loss: from logits and targets to the loss; it must not wait for the device.
        max_graphs: most shapes whose capture is tried.

    Raises:
        ValueError: if ``max_graphs`` is below 1, or the network is a DistributedDataParallel, whose
            averaging no replay would do.

    Example:
        >>> import torch.nn.functional as F
        >>> from manystream import StreamResNet
        >>> net = StreamResNet(family="li_net3", block="basic", layers=(1, 1, 1, 1),
        ...                    widths=(4, 8, 8, 8), in_channels=[3, 1], num_classes=5)
        >>> step = GraphedStep(net, F.cross_entropy)
        >>> images = [torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 32, 32)]
        >>> batch = replace(net.to_batch(images), target=torch.tensor([0, 1]))
        >>> loss, logits = step(batch)
        >>> loss.backward()
    """

    def __init__(self, network: nn.Module, loss: Loss, *, max_graphs: int = 8) -> None:
        if max_graphs < 1:
            raise ValueError(f"max_graphs is {max_graphs}; expected at least 1")
        if isinstance(network, DistributedDataParallel):
            raise ValueError(
                "the network is a DistributedDataParallel; give the network in it, and call "
                "manystream.training.average_gradients after the backward pass"
            )
        self.network = network
        self.loss = loss
        self.max_graphs = max_graphs
        self._state: Hashable = None
        self._shared: _Shared | None = None
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: set[Hashable] = set()
        self._captured: set[Hashable] = set()
        self._refused: set[Hashable] = set()

    @property
    def num_graphs(self) -> int:
        """Shapes captured so far, but for those that could not be captured again."""
        return len(self._captured)

    def __call__(self, batch: StreamBatch) -> tuple[Tensor, Tensor]:
        """Loss, shape (), and logits in the caller's order, shape (B, classes).

        Raises:
            ValueError: if the batch has no target.
        """
        if batch.target is None:
            raise ValueError("the batch has no target; expected one class per sample")
        if not self._may_replay(batch):
            return self._eager(batch)
        self._forget_if_changed(batch)
        key = _key(batch)
        if key not in self._graphs:
            if not self._may_capture(key):
                return self._eager(batch)
            if key not in self._seen:
                return self._first(batch, key)
            if not self._capture(batch, key):
                return self._eager(batch)
        return self._graphs[key].replay(batch)

    def _eager(self, batch: StreamBatch) -> tuple[Tensor, Tensor]:
        assert batch.target is not None
        logits = self.network(batch)
        return self.loss(logits, batch.target), logits

    def _may_replay(self, batch: StreamBatch) -> bool:
        if not (batch.streams[0].is_cuda and self.network.training and torch.is_grad_enabled()):
            return False
        return self._shared is None or not self._shared.is_pending()

    def _forget_if_changed(self, batch: StreamBatch) -> None:
        """Begin anew where the network or the way to compute is not what was captured."""
        state = _state(self.network, batch.streams[0].device.type)
        if state != self._state:
            self._state, self._shared = state, None
            for shapes in (self._graphs, self._seen, self._captured, self._refused):
                shapes.clear()

    def _may_capture(self, key: Hashable) -> bool:
        tried = len(self._captured) + len(self._refused)
        return key not in self._refused and (key in self._captured or tried < self.max_graphs)

    def _shared_now(self) -> _Shared:
        """What all graphs share, made when the first of them is to come."""
        if self._shared is None:
            self._shared = _Shared(self.network)
        return self._shared

    def _first(self, batch: StreamBatch, key: Hashable) -> tuple[Tensor, Tensor]:
        """An ordinary step, on the stream of the captures: it makes ready what they need."""
        self._seen.add(key)
        shared, here = self._shared_now(), torch.cuda.current_stream()
        shared.stream.wait_stream(here)
        try:
            with torch.cuda.stream(shared.stream), launches_are_free(), usable(shared.lanes):
                return self._eager(batch)
        finally:
            here.wait_stream(shared.stream)

    def _capture(self, batch: StreamBatch, key: Hashable) -> bool:
        """Whether the shape could be captured; where not, all memory of captures is given back."""
        reason = None
        with torch.cuda.stream(torch.cuda.current_stream()):  # a broken capture does not return
            try:
                self._graphs[key] = _Graph(self.network, self.loss, batch, self._shared_now())
            except RuntimeError as error:
                # Ending a broken capture may fail in turn; what it broke on is said.
                reason = str(error.__context__ or error).splitlines()[0]
        if reason is None:
            self._captured.add(key)
            return True
        self._captured.discard(key)
        self._refused.add(key)
        self._give_back()
        warnings.warn(
            f"no CUDA graph for this shape, its steps run eagerly: {reason}", stacklevel=3
        )
        return False

    def _give_back(self) -> None:
        """Give back all memory of captures: the pool goes with its last graph, and not before.

        The error is gone, and with it the broken capture's tensors.
        """
        self._graphs.clear()
        self._shared = None
        gc.collect()
        torch.cuda.empty_cache()


class _Shared:
    """Pool, stream and gradients of all graphs of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.stream, self.lanes = _beside(torch.cuda.current_device())
        self.names = [n for n, p in network.named_parameters() if p.requires_grad]
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.grads = [torch.zeros_like(p) for p in self.parameters]
        self._pending: weakref.ref[_Pending] | None = None

    def is_pending(self) -> bool:
        """Whether activations of a replayed forward pass still wait for their backward."""
        pending = None if self._pending is None else self._pending()
        return pending is not None and not pending.done

    def begin(self) -> _Pending:
        """Remember that a forward pass was replayed."""
        pending = _Pending()
        self._pending = weakref.ref(pending)
        return pending

    def save_own(self) -> None:
        """What earlier backward passes left must not be overwritten by the next replay."""
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            if parameter.grad is grad:
                parameter.grad = grad.clone()

    def hand_out(self, used: Sequence[bool]) -> None:
        """Give the parameters what a replay has written."""
        for parameter, grad, is_used in zip(self.parameters, self.grads, used, strict=True):
            if not is_used:
                continue
            if parameter.grad is None:
                parameter.grad = grad
            else:
                parameter.grad.add_(grad)


class _Pending:
    """Lives as long as somebody can ask for the backward pass."""

    done = False


class _Graph:
    """A captured forward and backward pass over one shape."""

    def __init__(self, network: nn.Module, loss: Loss, batch: StreamBatch, shared: _Shared) -> None:
        assert batch.target is not None
        self._shared = shared
        self._batch = _static(batch)
        self._scale = torch.ones((), device=batch.target.device)
        self._forward, self._backward = CapturedGraph(), CapturedGraph()
        with launches_are_free(), self._capturing(self._forward):
            leaves = _leaves(shared.parameters, batch.streams[0].device.type)
            named = dict(zip(shared.names, leaves, strict=True))
            with usable(shared.lanes):
                logits = functional_call(network, named, (self._batch,))
            assert self._batch.target is not None
            value = loss(logits, self._batch.target)
        with self._capturing(self._backward):
            found = torch.autograd.grad(value, leaves, self._scale.to(value), allow_unused=True)
            _copy_gradients(found, shared.grads)
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
        _copy(batch, self._batch)
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


class _Replayed(torch.autograd.Function):
    """The loss of a replayed forward pass; its backward replays the other graph."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, graph: _Graph, loss: Tensor) -> Tensor:
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


@cache
def _beside(device: int) -> tuple[torch.cuda.Stream, Lanes | None]:
    """The stream of all captures on a device, and its lanes: libraries keep memory for each."""
    return torch.cuda.Stream(device), Lanes() if _memory_of_lanes_is_reused() else None


@cache
def _memory_of_lanes_is_reused() -> bool:
    """Ask the allocator to hand out again, in a capture, what several CUDA streams have read.

    Otherwise all of that would stay until the capture ends. Settings begin anew each time they are
    given, so what the environment says is said again.
    """
    said = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
    settings = [said, "graph_capture_record_stream_reuse:True"]
    try:
        torch._C._accelerator_setAllocatorSettings(",".join(filter(None, settings)))
    except (AttributeError, RuntimeError, ValueError):
        return False
    return True


def _key(batch: StreamBatch) -> Hashable:
    """All that a batch's shape is: which rows enter which views, and the images' sizes."""
    runs = tuple(
        tuple((rows.start, rows.stop, views.start) for rows, views in of_stream)
        for of_stream in batch.views.runs
    )
    groups = tuple((group.subset, group.views.stop) for group in batch.views.groups)
    return (runs, groups, len(batch), *((x.shape, x.dtype) for x in batch.streams))


def _state(network: nn.Module, device: str) -> Hashable:
    """All that captured work depends on besides its inputs."""
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return (
        autocast,
        getattr(network, "memory", None),
        tuple((p.data_ptr(), p.requires_grad) for p in network.parameters()),
        tuple(m.training for m in network.modules()),
    )


def _leaves(parameters: Sequence[nn.Parameter], device: str) -> list[Tensor]:
    """The parameters, their kernels cast at once as autocast would cast each; all without history.

    The gradients of the copies are cast back at once as well.
    """
    leaves = [p.detach() for p in parameters]
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        cast = [i for i, p in enumerate(leaves) if p.dim() > 1 and p.dtype == torch.float32]
        copies = [torch.empty_like(leaves[i], dtype=dtype) for i in cast]
        torch._foreach_copy_(list(map(_flat, copies)), [_flat(leaves[i]) for i in cast])
        for i, copy in zip(cast, copies, strict=True):
            leaves[i] = copy
    return [leaf.requires_grad_() for leaf in leaves]


def _copy_gradients(found: Sequence[Tensor | None], into: Sequence[Tensor]) -> None:
    """Copy what was found, one launch for many tensors: those of one dtype, laid out alike."""
    groups: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for source, target in zip(found, into, strict=True):
        if source is None:
            continue
        if _dense_strides(source) != _dense_strides(target):
            target.copy_(source)
            continue
        groups.setdefault(source.dtype, []).append((_flat(target), _flat(source)))
    for pairs in groups.values():
        torch._foreach_copy_([t for t, _ in pairs], [s for _, s in pairs])


def _dense_strides(x: Tensor) -> list[int]:
    """Strides of the dimensions that have more than one entry: the others' say nothing."""
    return [stride for side, stride in zip(x.shape, x.stride(), strict=True) if side > 1]


def _flat(x: Tensor) -> Tensor:
    """All entries of a dense tensor in the order of memory."""
    return x.as_strided((x.numel(),), (1,))


def _static(batch: StreamBatch) -> StreamBatch:
    """A copy that replays read; it always has an order to restore."""
    assert batch.target is not None
    views = replace(batch.views, full=_full(batch).clone())
    streams = tuple(x.clone(memory_format=torch.channels_last) for x in batch.streams)
    return StreamBatch(streams, batch.presence, target=batch.target.clone(), views=views)


def _copy(batch: StreamBatch, static: StreamBatch) -> None:
    assert batch.target is not None
    assert static.target is not None
    assert static.views.full is not None
    sources = [*batch.streams, batch.target, _full(batch)]
    targets = [*static.streams, static.target, static.views.full]
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source, non_blocking=True)


def _full(batch: StreamBatch) -> Tensor:
    index = batch.views.full
    if index is not None:
        return index
    return torch.arange(len(batch), device=batch.streams[0].device)
