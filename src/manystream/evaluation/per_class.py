"""How well each class is told, and for which other one it is taken."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from manystream.evaluation.inference import answer, inferring, read
from manystream.evaluation.subsets import without
from manystream.models import StreamNetwork
from manystream.tasks import Classification, Task


@dataclass(frozen=True)
class ClassRow:
    """One class.

    Attributes:
        name: the class.
        num_samples: samples that are of it.
        accuracy: share of them that is told right; None without samples.
        precision: share of what is taken for this class that is of it; None if nothing is.
        taken_for: the other class that its samples are most often taken for; None if they never
            are.
    """

    name: str
    num_samples: int
    accuracy: float | None
    precision: float | None
    taken_for: str | None


@dataclass(frozen=True)
class ClassTable:
    """Counts of samples by class and prediction.

    Attributes:
        classes: names of the K classes.
        confusion: samples by class, in rows, and prediction, in columns, shape (K, K), int64.
    """

    classes: tuple[str, ...]
    confusion: Tensor

    def rows(self) -> list[ClassRow]:
        """List every class, in order."""
        return [self._row(number) for number in range(len(self.classes))]

    def to_dict(self) -> dict[str, Any]:
        """Give plain values: ``classes``, a dict per class, and ``confusion``."""
        return {"classes": list(map(vars, self.rows())), "confusion": self.confusion.tolist()}

    def _row(self, number: int) -> ClassRow:
        right = int(self.confusion[number, number])
        samples, taken = int(self.confusion[number].sum()), int(self.confusion[:, number].sum())
        others = self.confusion[number].clone()
        others[number] = 0
        return ClassRow(
            self.classes[number],
            samples,
            right / samples if samples else None,
            right / taken if taken else None,
            self.classes[int(others.argmax())] if others.any() else None,
        )


def evaluate_classes(
    network: StreamNetwork,
    task: Task,
    loader: Iterable[Any],
    *,
    classes: Sequence[str] | None = None,
    blanked_streams: Collection[str] = (),
    accelerator: str = "auto",
    progress: bool = False,
) -> ClassTable:
    """Count predictions by class on a loader.

    Args:
        network: the network.
        task: a classification.
        loader: batches as :func:`manystream.batch.read_batch` takes them, with targets.
        classes: names of the classes; those of the task by default.
        blanked_streams: names of streams to take away. A sample that has no other is left out.
        accelerator: device, see :func:`manystream.evaluation.inference.device_of`.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if the task has no classes, or a batch does not fit the network.
    """
    if not isinstance(task, Classification):
        raise ValueError(f"the task is {task.name}; a table of classes is for classification")
    kept = torch.tensor(without(network, blanked_streams))
    with inferring(network, accelerator) as device:
        confusion = MulticlassConfusionMatrix(task.num_outputs, validate_args=False).to(device)
        for batch in read(network, loader, device, task=task, progress=progress):
            left = batch.keep(batch.presence.mask & kept)
            if len(left):
                confusion.update(answer(network, left), left.target)
        counts = confusion.confmat.cpu()
    return ClassTable(task.class_names() if classes is None else tuple(classes), counts)
