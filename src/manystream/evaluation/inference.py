"""A network's answers: the loop over a loader, one answer a sample, or one for every subset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor
from torch.utils._pytree import tree_map

from manystream.batch import StreamBatch, read_batch
from manystream.models import StreamNetwork
from manystream.models.network import check_answers_by_view
from manystream.presence import Views
from manystream.tasks import Task

_MOST_VIEWS_PER_SAMPLE = 8
"""How many views of each sample of a batch are held at once: every subset of three streams."""


def predict(
    network: StreamNetwork,
    task: Task,
    loader: Iterable[Any],
    *,
    accelerator: str = "auto",
    progress: bool = False,
) -> Any:
    """Predict every sample of a loader, in its order.

    Args:
        network: the network.
        task: what its outputs mean.
        loader: batches as :func:`manystream.batch.read_batch` takes them; targets are not needed.
        accelerator: device, see :func:`device_of`.
        progress: whether to show a progress bar.

    Returns:
        The task's predictions on the CPU, N entries in each tensor; for classification
        probabilities, shape (N, num_classes), float32.

    Raises:
        ValueError: if a batch does not fit the network, or there is none.
    """
    with inferring(network, accelerator) as device:
        predicted = [
            tree_map(Tensor.cpu, task.predict(answer(network, batch)))
            for batch in read(network, loader, device, progress=progress)
        ]
    if not predicted:
        raise ValueError("the loader has no batch; expected at least one")
    return tree_map(lambda *parts: torch.cat(parts), *predicted)


@contextmanager
def inferring(network: StreamNetwork, accelerator: str) -> Iterator[torch.device]:
    """Have a network on a device, in evaluation and without gradients, then as it was before."""
    modes = {module: module.training for module in network.modules()}
    home = next(network.parameters()).device
    device = device_of(accelerator)
    if home.type == device.type:  # of several such devices, the one it is on
        device = home
    try:
        network.to(device).eval()
        with torch.no_grad():
            yield device
    finally:
        network.to(home)
        for module, training in modes.items():
            module.training = training


def device_of(accelerator: str) -> torch.device:
    """Find a device by its name.

    Args:
        accelerator: ``"cpu"``; ``"gpu"`` or the name of a type of device, as ``"cuda"`` or
            ``"mps"``; ``"auto"`` is a GPU where there is one.

    Raises:
        ValueError: if it is not here.
    """
    here = torch.accelerator.current_accelerator(check_available=True)
    if accelerator == "cpu" or (accelerator == "auto" and here is None):
        return torch.device("cpu")
    if here is not None and accelerator in ("auto", "gpu", here.type):
        return here
    there = ["auto", "cpu", *([] if here is None else ["gpu", here.type])]
    raise ValueError(
        f"accelerator is {accelerator!r}; expected one of {', '.join(there)} on this machine"
    )


def read(
    network: StreamNetwork,
    loader: Iterable[Any],
    device: torch.device,
    *,
    task: Task | None = None,
    progress: bool = False,
) -> Iterator[StreamBatch]:
    """Bring a loader's batches to a device, checked and compact; empty ones are left out.

    Images are given the dtype of the network's weights.

    Args:
        network: whose streams the batches have.
        loader: batches as :func:`manystream.batch.read_batch` takes them.
        device: where they are to be.
        task: whose targets they must have; None asks for none.
        progress: whether to show a progress bar.
    """
    dtype = next(network.parameters()).dtype  # float64, say, after a run with precision 64-true
    for batch in track(loader, "evaluating", transient=True, disable=not progress):
        compact = read_batch(batch, network.in_channels)
        if len(compact):
            if task is not None:
                task.check_target(compact.target, len(compact), compact.ids)
            yield compact.map(lambda x: x.to(dtype)).to(device)


def answer(network: StreamNetwork, batch: StreamBatch) -> Tensor:
    """Ask a network for its outputs in the caller's order, (B, ...), float32 or wider."""
    # Not around the loader: what a data set keeps of a pass could not be trained on later.
    with torch.inference_mode():
        return _at_least_float32(network(batch))


class SubsetAnswer(NamedTuple):
    """Outputs of those samples of a batch that have all streams of a subset.

    Attributes:
        output: shape (n, ...), float32 or wider.
        samples: the caller's numbers of these samples, (n,), int64, on the CPU.
    """

    output: Tensor
    samples: Tensor


def answers_by_subset(network: StreamNetwork, batch: StreamBatch) -> dict[int, SubsetAnswer]:
    """Ask a network about every sample with every subset of the streams that it has.

    Each stream runs once: no stream reads the integrated pathway, and only that has a row for each
    sample and subset.

    Args:
        network: in evaluation.
        batch: a batch before the first layer.

    Returns:
        The answers by subset, the bits of a number; a subset that no sample has all of is not
        there.

    Raises:
        ValueError: if the network does not give a row for each view of the batch, or cannot be
            asked to.
    """
    check_answers_by_view(network)
    views = Views.with_subsets(batch.presence)
    on_device = views.to(batch.streams[0].device)
    with torch.inference_mode():
        output = _at_least_float32(network(replace(batch, views=on_device), by_view=True))
    if len(output) != views.num_views:
        raise ValueError(
            f"{type(network).__name__}.forward_batch gives {len(output)} rows; expected one for "
            f"each of the batch's {views.num_views} views (batch.views): build it of our layers"
        )
    return {g.subset: SubsetAnswer(output[g.views], views.sample[g.views]) for g in views.groups}


def in_parts(batch: StreamBatch) -> Iterator[StreamBatch]:
    """Cut a batch of many streams, so that its views with every subset do not fill the memory."""
    num_subsets = 2**batch.presence.num_streams - 1
    num_parts = -(-num_subsets // _MOST_VIEWS_PER_SAMPLE)
    if num_parts == 1:
        yield batch
        return
    for samples in torch.arange(len(batch)).chunk(num_parts):
        mask = torch.zeros_like(batch.presence.mask)
        mask[samples] = True
        yield batch.keep(mask)


def _at_least_float32(output: Tensor) -> Tensor:
    return output.to(torch.promote_types(output.dtype, torch.float32))
