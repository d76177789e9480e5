"""Class probabilities of new samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from manystream.models import StreamNetwork
from manystream.training.module import ClassifierModule
from manystream.training.trainer import Batches, trainer_session


def predict(
    network: StreamNetwork,
    loader: Iterable[Any],
    *,
    accelerator: str = "auto",
    progress: bool = False,
) -> Tensor:
    """Class probabilities of every sample of a loader, in its order.

    Args:
        network: the network.
        loader: batches as :func:`read_batch` takes them; targets are not needed.
        accelerator: device, by Lightning's names.
        progress: whether to show a progress bar.

    Returns:
        Shape (N, num_classes), float32, on the CPU.

    Raises:
        ValueError: if a batch does not fit the network, or there is none.
    """
    with trainer_session(progress=progress, accelerator=accelerator) as trainer:
        batches: list[Tensor] = trainer.predict(ClassifierModule(network), Batches(loader))  # type: ignore[assignment]
    if not batches:
        raise ValueError("the loader has no batch; expected at least one")
    return torch.cat([probabilities.cpu() for probabilities in batches])
