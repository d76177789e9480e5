"""Metrics of classification that torchmetrics has not, or has with a wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassCalibrationError


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
        """Return the metric, shape ()."""
        seen = self.samples > 0
        return (self.right[seen] / self.samples[seen]).mean()


class CalibrationError(MulticlassCalibrationError):
    r"""Expected calibration error: how far confidence is from the share of right answers.

    .. math:: \sum_b \frac{n_b}{N} |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    over 15 equal bins b of the probability of the named class. Of 0.1, answers are 10 points surer
    than they should be, or less sure.

    Args:
        num_classes: number of classes K.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3.

    Example:
        >>> metric = CalibrationError(2)
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
        >>> metric(probabilities, torch.tensor([0, 1]))
        tensor(0.4000)
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, n_bins=15, norm="l1", validate_args=False)

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Take in a batch, shapes (B, K) and (B,).

        torchmetrics looks whether these are probabilities, which waits for the device.
        """
        confidence, named = probabilities.float().max(dim=1)
        self.confidences.append(confidence)
        self.accuracies.append((named == target).float())


class ChanceLevel(Metric):
    """What an answer reaches that names the most frequent class of the samples, whatever it sees.

    For accuracy the share of that class; for mean class accuracy one by the number of classes that
    have samples.

    Args:
        num_classes: number of classes K.

    Example:
        >>> chance = ChanceLevel(3)
        >>> chance.update(torch.tensor([0, 0, 0, 2]))
        >>> chance.compute()
        {'accuracy': tensor(0.7500), 'mean_class_accuracy': tensor(0.5000)}
    """

    is_differentiable = False
    full_state_update = False

    samples: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        zeros = torch.zeros(num_classes, dtype=torch.int64)
        self.add_state("samples", zeros, dist_reduce_fx="sum")

    def update(self, target: Tensor) -> None:
        """Count a batch, shape (B,)."""
        self.samples.index_add_(0, target, torch.ones_like(target))

    def compute(self) -> dict[str, Tensor]:
        """Chance level by the name of the metric, each of shape ()."""
        share = self.samples.max() / self.samples.sum()
        return {"accuracy": share, "mean_class_accuracy": 1 / (self.samples > 0).sum()}
