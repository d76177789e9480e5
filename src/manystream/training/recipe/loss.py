"""The loss of a run's steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from manystream.tasks import StepLoss, Task
from manystream.training.options import FitOptions


def make_loss(task: Task, options: FitOptions, train_loader: Iterable[Any]) -> StepLoss:
    """Make the loss of a run's steps.

    Args:
        task: what is trained.
        options: which loss.
        train_loader: batches, of whose data set a task may count ``targets``.

    Raises:
        ValueError: if the options do not fit the task or the targets.
    """
    dataset = getattr(train_loader, "dataset", None)
    owner = getattr(dataset, "source", dataset)
    return StepLoss(task.training_loss(options, getattr(owner, "targets", None)))
