"""Mean class accuracy, which a frequent class cannot carry."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


class MeanClassAccuracy(MulticlassConfusionMatrix):
    """Share of right answers per class, averaged over the classes that have samples.

    torchmetrics' macro average counts a class without samples as 0 once it was predicted; here it
    does not count.
    """

    def compute(self) -> Tensor:
        """Shape ()."""
        confusion = super().compute()
        samples = confusion.sum(dim=1)
        seen = samples > 0
        return (confusion.diagonal()[seen] / samples[seen]).mean()
