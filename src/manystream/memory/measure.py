"""What a training step of a network takes: its peak, and what it keeps for backward, and where."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from manystream.batch import StreamBatch
from manystream.layers import BasicBlock, Bottleneck, StreamConv2d, StreamNormAct2d
from manystream.memory.counting import peak_bytes, watching_kept
from manystream.models import StreamNetwork
from manystream.tasks import forward_and_loss

Kind = Literal[
    "raw output", "integrated raw output", "activation", "block output", "index", "other"
]
"""What a kept tensor is: a stream convolution's output; the integrated one; what a norm with its
ReLU and pool gives inside a block; what a block gives; integers; and the rest, such as statistics
and kernels in reduced precision."""


@dataclass(frozen=True)
class MemoryReport:
    """Memory of one training step, beyond parameters, buffers, gradients and the batch.

    Attributes:
        peak_allocated_bytes: most bytes alive at once beyond those before the step.
        peak_reserved_bytes: most bytes that the allocator held in all; None on the CPU.
        kept_bytes: bytes that the forward pass keeps for backward.
        kept_by_layer: these by the layer that asked for them first, in order of the forward pass.
        kept_by_kind: these by what they are.
    """

    peak_allocated_bytes: int
    peak_reserved_bytes: int | None
    kept_bytes: int
    kept_by_layer: dict[str, int]
    kept_by_kind: dict[Kind, int]


def measure(
    network: StreamNetwork,
    batch: StreamBatch,
    autocast_dtype: torch.dtype | None = None,
    *,
    loss: Callable[[Tensor, Any], Tensor] = F.cross_entropy,
) -> MemoryReport:
    """Measure a training step on the batch's device; the network stays as it is.

    The step is forward, loss and backward. Gradients exist before it and are not counted.

    Args:
        network: the network; a copy of it is measured.
        batch: a batch with targets.
        autocast_dtype: precision of the forward pass, for example ``torch.bfloat16``.
        loss: from the network's output and the target to shape (); cross-entropy by default. Views
            with subsets of the streams want a :class:`manystream.tasks.StepLoss`.

    Raises:
        ValueError: if the batch has no target.

    Example:
        >>> from dataclasses import replace
        >>> from manystream.models import StreamResNet
        >>> net = StreamResNet(widths=(4, 4, 4, 4), in_channels=[3, 1], num_classes=2)
        >>> images = [torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 32, 32)]
        >>> batch = replace(net.to_batch(images), target=torch.tensor([0, 1]))
        >>> report = measure(net, batch)
        >>> report.kept_bytes <= report.peak_allocated_bytes
        True
    """
    target = batch.target
    if target is None:
        raise ValueError("the batch has no target; expected one to take a loss from")
    device = batch.streams[0].device
    trained = copy.deepcopy(network).to(device).train()
    batch = trained.to_batch(batch)

    def step() -> Tensor:
        with torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None):
            return forward_and_loss(trained, loss, batch)[0]

    step().backward()  # Makes the gradients.
    lives = [*trained.parameters(), *trained.buffers(), *batch.streams, *tree_leaves(target)]
    by_layer, by_kind = kept_by(trained, step, lives)
    return MemoryReport(
        peak_bytes(lambda: step().backward(), device),
        torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None,
        sum(by_layer.values()),
        by_layer,
        by_kind,
    )


def kept_by(
    network: nn.Module, forward: Callable[[], Tensor], exclude: Iterable[Tensor | None] = ()
) -> tuple[dict[str, int], dict[Kind, int]]:
    """Count the bytes that a forward pass keeps for backward, by layer and by kind.

    Args:
        network: whose layers are told apart; hooks are put on it and taken off.
        forward: runs it and returns what the backward pass would start from.
        exclude: tensors that live anyway.

    Returns:
        Bytes by name of the layer that was running, ``""`` outside of all; bytes by kind.
    """
    kept: dict[torch.UntypedStorage, tuple[str, bool]] = {}
    running: list[str] = [""]

    def save(tensor: Tensor) -> None:
        is_index = not (tensor.is_floating_point() or tensor.is_complex())
        kept.setdefault(tensor.untyped_storage(), (running[-1], is_index))

    with _labelling(network) as labels, _tracking(network, running), watching_kept(save):
        # The result holds the graph; labels are looked up before it goes.
        result = forward()
        for tensor in exclude:
            if tensor is not None:
                kept.pop(tensor.untyped_storage(), None)
        by_layer: dict[str, int] = defaultdict(int)
        by_kind: dict[Kind, int] = defaultdict(int)
        for storage, (layer, is_index) in kept.items():
            by_layer[layer] += storage.nbytes()
            by_kind["index" if is_index else labels.get(storage, "other")] += storage.nbytes()
    del result
    return dict(by_layer), dict(by_kind)


@contextmanager
def _labelling(network: nn.Module) -> Iterator[WeakKeyDictionary[torch.UntypedStorage, Kind]]:
    """Say of the storages that layers return what they are; a block's word is the last."""
    labels: WeakKeyDictionary[torch.UntypedStorage, Kind] = WeakKeyDictionary()

    def label(module: nn.Module, args: Any, output: StreamBatch) -> None:
        stream, integrated = _kinds(module)
        labels.update({x.untyped_storage(): stream for x in output.streams})
        if output.integrated is not None:
            labels[output.integrated.untyped_storage()] = integrated

    layers = StreamConv2d | StreamNormAct2d | BasicBlock | Bottleneck
    handles = [m.register_forward_hook(label) for m in network.modules() if isinstance(m, layers)]
    try:
        yield labels
    finally:
        for handle in handles:
            handle.remove()


def _kinds(module: nn.Module) -> tuple[Kind, Kind]:
    """Name what a layer gives on its streams, and on the integrated pathway."""
    if isinstance(module, StreamConv2d):
        return "raw output", "integrated raw output"
    return ("activation",) * 2 if isinstance(module, StreamNormAct2d) else ("block output",) * 2


@contextmanager
def _tracking(network: nn.Module, running: list[str]) -> Iterator[None]:
    """Keep the name of the layer that runs at the end of a list."""
    handles = []
    for name, layer in _layers(network):

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            running.append(name)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            running.pop()

        handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Stream layers, and what else has no module inside."""
    for name, child in network.named_children():
        if isinstance(child, StreamConv2d | StreamNormAct2d) or not list(child.children()):
            yield prefix + name, child
        else:
            yield from _layers(child, f"{prefix}{name}.")
