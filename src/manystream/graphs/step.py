"""Which steps are replayed, captured or run eagerly: one pair of graphs for each shape of batch."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from manystream.batch import StreamBatch, target_tensors
from manystream.functional.kernels.dispatch import launches_are_free
from manystream.functional.lanes import usable
from manystream.graphs.pair import GraphPair, Loss, Shared
from manystream.tasks import forward_and_loss


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
        loss: from logits and targets to the loss, and for views with subsets of the streams as
            :class:`manystream.tasks.StepLoss`; it must not wait for the device.
        max_graphs: most shapes whose capture is tried.

    Raises:
        ValueError: if ``max_graphs`` is below 1, or the network is a DistributedDataParallel, whose
            averaging no replay would do.

    Example:
        >>> from dataclasses import replace
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
        self._shared: Shared | None = None
        self._graphs: dict[Hashable, GraphPair] = {}
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
            raise ValueError("the batch has no target; expected one per sample")
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
        pair = self._graphs[key]
        return pair.replay(batch)

    def _eager(self, batch: StreamBatch) -> tuple[Tensor, Tensor]:
        return forward_and_loss(self.network, self.loss, batch)

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

    def _shared_now(self) -> Shared:
        """Return what all graphs share, made when the first of them is to come."""
        if self._shared is None:
            self._shared = Shared(self.network)
        return self._shared

    def _first(self, batch: StreamBatch, key: Hashable) -> tuple[Tensor, Tensor]:
        """Take an ordinary step, on the stream of the captures: it makes ready what they need."""
        self._seen.add(key)
        shared, here = self._shared_now(), torch.cuda.current_stream()
        shared.stream.wait_stream(here)
        try:
            with torch.cuda.stream(shared.stream), launches_are_free(), usable(shared.lanes):
                return self._eager(batch)
        finally:
            here.wait_stream(shared.stream)

    def _capture(self, batch: StreamBatch, key: Hashable) -> bool:
        """Capture a shape, and tell whether that worked; if not, give back what captures took."""
        reason = None
        with torch.cuda.stream(torch.cuda.current_stream()):  # a broken capture does not return
            try:
                self._graphs[key] = GraphPair(self.network, self.loss, batch, self._shared_now())
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


def _key(batch: StreamBatch) -> Hashable:
    """Return all that a batch's shape is: which rows enter which views, and the images' sizes."""
    runs = tuple(
        tuple((rows.start, rows.stop, views.start) for rows, views in of_stream)
        for of_stream in batch.views.runs
    )
    groups = tuple((group.subset, group.views.stop) for group in batch.views.groups)
    tensors = (*batch.streams, *target_tensors(batch.target))
    return (runs, groups, len(batch), *((x.shape, x.dtype) for x in tensors))


def _state(network: nn.Module, device: str) -> Hashable:
    """Return all that captured work depends on besides its inputs."""
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return (
        autocast,
        getattr(network, "memory", None),
        tuple((p.data_ptr(), p.requires_grad) for p in network.parameters()),
        tuple(m.training for m in network.modules()),
    )
