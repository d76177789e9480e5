"""Mean class accuracy, which a frequent class cannot carry."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


class MeanClassAccuracy(MulticlassConfusionMatrix):
    """Share of right answers per class, averaged over the classes that have samples.

    torchmetrics' macro average counts a class without samples as 0 once it was predicted; here it
    does not count.
    """

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count a batch, shapes (B, K) and (B,).

        torchmetrics' own count asks the device for the largest entry, which waits for it.
        """
        cell = target * self.num_classes + logits.argmax(dim=1)
        self.confmat.view(-1).index_add_(0, cell, torch.ones_like(cell))

    def compute(self) -> Tensor:
        """Shape ()."""
        return mean_class_accuracy(self.confmat)

    def confusion(self) -> Tensor:
        """Counts of all processes so far, see :func:`mean_class_accuracy`; every one must ask."""
        with self.sync_context():
            return self.confmat.clone()


def mean_class_accuracy(confusion: Tensor) -> Tensor:
    """Share of right answers per class, averaged over the classes that have samples.

    Args:
        confusion: samples by class, in rows, and prediction, in columns, shape (K, K).

    Returns:
        Shape (); NaN without samples.

    Example:
        >>> mean_class_accuracy(torch.tensor([[3, 1, 0], [0, 1, 0], [0, 0, 0]]))
        tensor(0.8750)
    """
    samples = confusion.sum(dim=1)
    seen = samples > 0
    return (confusion.diagonal()[seen] / samples[seen]).mean()
