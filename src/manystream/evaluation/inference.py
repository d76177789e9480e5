"""A network's answers: the loop over a loader, and what is measured of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.utils._pytree import tree_map

from manystream.batch import StreamBatch, read_batch
from manystream.models import StreamNetwork
from manystream.tasks import Task

Measured = dict[str, float]
"""What is measured under one condition: ``loss``, the task's metrics, ``num_samples``."""


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
        loader: batches as :func:`manystream.streams.read_batch` takes them; targets are not needed.
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

    Args:
        network: whose streams the batches have.
        loader: batches as :func:`manystream.streams.read_batch` takes them.
        device: where they are to be.
        task: whose targets they must have; None asks for none.
        progress: whether to show a progress bar.
    """
    for batch in track(loader, "evaluating", transient=True, disable=not progress):
        compact = read_batch(batch, network.in_channels)
        if len(compact):
            if task is not None:
                task.check_target(compact.target, len(compact), compact.ids)
            yield compact.to(device)


def answer(network: StreamNetwork, batch: StreamBatch) -> Tensor:
    """Outputs of a network in the caller's order, (B, ...), float32."""
    # Not around the loader: what a data set keeps of a pass could not be trained on later.
    with torch.inference_mode():
        output: Tensor = network(batch)
    return output.float()


class Measurement:
    """Loss and metrics of a task, gathered over batches.

    Args:
        task: what is measured.
        device: where the batches are.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self._task = task
        self._metrics = task.metrics().to(device)
        self._losses: list[Tensor] = []
        self._num_samples = 0

    def update(self, output: Tensor, target: Any) -> None:
        """Take in the answers to some samples, without waiting for the device."""
        self._metrics.update(self._task.predict(output), target)
        self._losses.append(self._task.loss(output, target).mean() * len(output))
        self._num_samples += len(output)

    def compute(self) -> Measured:
        """Give ``loss``, the metrics and ``num_samples``; nothing if there was no sample."""
        if self._num_samples == 0:
            return {}
        return {
            "loss": math.fsum(loss.item() for loss in self._losses) / self._num_samples,
            **{str(name): value.item() for name, value in self._metrics.compute().items()},
            "num_samples": float(self._num_samples),
        }
