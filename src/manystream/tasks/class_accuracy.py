"""Mean class accuracy, which a frequent class cannot carry."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanClassAccuracy(Metric):
    """Share of right answers per class, averaged over the classes that have samples.

    torchmetrics' macro average counts a class without samples as 0 once it was predicted; here it
    does not count. NaN without samples.

    Args:
        num_classes: number of classes K.

    Example:
        >>> metric = MeanClassAccuracy(3)
        >>> scores = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.4, 0.6, 0.0]])
        >>> metric(scores, torch.tensor([0, 0, 1]))
        tensor(0.7500)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    right: Tensor
    samples: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for state in ("right", "samples"):
            zeros = torch.zeros(num_classes, dtype=torch.int64)
            self.add_state(state, zeros, dist_reduce_fx="sum")

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Count a batch, shapes (B, K) and (B,), without waiting for the device."""
        right = (scores.argmax(dim=1) == target).long()
        self.right.index_add_(0, target, right)
        self.samples.index_add_(0, target, torch.ones_like(target))

    def compute(self) -> Tensor:
        """Shape ()."""
        seen = self.samples > 0
        return (self.right[seen] / self.samples[seen]).mean()
