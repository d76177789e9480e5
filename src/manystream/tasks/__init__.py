"""Tasks: which targets a network learns, with which loss, and how its answers are measured."""

from manystream.tasks.classification import Classification
from manystream.tasks.task import (
    Answer,
    Loss,
    Quantity,
    StepLoss,
    Task,
    forward_and_loss,
    load_task,
)

__all__ = [
    "Answer",
    "Classification",
    "Loss",
    "Quantity",
    "StepLoss",
    "Task",
    "forward_and_loss",
    "load_task",
]
