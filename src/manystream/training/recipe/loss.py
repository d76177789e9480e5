"""The classification loss: cross entropy or focal, with label smoothing and class weights."""

# Annotations are not postponed: the command line reads these fields from another module.
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manystream.choices import check_choices
from manystream.training.recipe.ranges import check_at_least, check_share

Loss = Literal["cross_entropy", "focal"]


@dataclass
class LossOptions:
    """What training makes small.

    Raises:
        ValueError: if a number is out of its range.
    """

    loss: Loss = "cross_entropy"
    """cross_entropy, or focal, which counts a sample the less the surer the network is of it."""
    focal_gamma: float = 2.0
    """How much less, for focal; 0 is cross_entropy."""
    label_smoothing: float = 0.0
    """Probability mass that is spread over the wrong classes."""
    class_weights: Literal["balanced"] | list[float] | None = None
    """How much a sample of each class counts, a number per class; balanced takes the inverse of the
    class's frequency in training, 1 on average."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, 0, "focal_gamma")
        check_share(self, "label_smoothing")
        weights = self.class_weights
        if weights is None or isinstance(weights, str):
            return
        if not all(w >= 0 for w in weights) or not any(weights):
            raise ValueError(f"class_weights is {weights}; expected numbers from 0, one above 0")


class ClassificationLoss(nn.Module):
    r"""Mean over a batch of weighted, focused cross entropies.

    .. math::
        L = \frac{1}{B} \sum_b w_{y_b} (1 - p_b)^\gamma \,
            \Bigl(-\sum_c q_{bc} \log p_{bc}\Bigr), \qquad p_b = p_{b y_b}

    with the smoothed target :math:`q_{bc} = (1 - s) [c = y_b] + s / K`. It is divided by the number
    of samples, not by their weights as in ``nn.CrossEntropyLoss``, so that accumulated or
    distributed batches of one size give the gradient of the joined batch.

    Args:
        gamma: focus :math:`\gamma`; 0 counts all samples alike.
        label_smoothing: smoothing s.
        class_weights: weight w of each class, shape (K,); 1 by default.

    Source:
        Lin et al., "Focal Loss for Dense Object Detection", 2017, equation 5.

    Example:
        >>> loss = ClassificationLoss(class_weights=torch.tensor([1.0, 3.0]))
        >>> loss(torch.zeros(2, 2), torch.tensor([0, 1])) / torch.tensor(2.0).log()
        tensor(2.)
    """

    class_weights: Tensor | None

    def __init__(
        self,
        gamma: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Shapes (B, K) and (B,), int64, to ()."""
        losses = F.cross_entropy(
            logits, target, label_smoothing=self.label_smoothing, reduction="none"
        )
        if self.gamma > 0:
            right = F.cross_entropy(logits, target, reduction="none").neg().exp()
            # At p = 1 a gamma below 1 would have an infinite slope.
            losses = losses * (1 - right).clamp_min(torch.finfo(right.dtype).eps) ** self.gamma
        if self.class_weights is not None:
            losses = losses * self.class_weights.to(losses.dtype)[target]
        return losses.mean()


def make_loss(
    options: LossOptions, num_classes: int, train_loader: Iterable[Any]
) -> ClassificationLoss:
    """The loss of a run.

    Args:
        options: which loss.
        num_classes: number of classes K.
        train_loader: whose data set has the targets that ``balanced`` weights are counted from.

    Raises:
        ValueError: if there are not K weights, or the targets cannot be counted.
    """
    check_class_weights(options, num_classes)
    weights = options.class_weights
    if isinstance(weights, str):
        weights = balanced_weights(_targets(train_loader), num_classes)
    return ClassificationLoss(
        options.focal_gamma if options.loss == "focal" else 0.0,
        options.label_smoothing,
        None if weights is None else torch.tensor(weights),
    )


def check_class_weights(options: LossOptions, num_classes: int) -> None:
    """Refuse a list of weights of another length.

    Raises:
        ValueError: if there are not ``num_classes``.
    """
    weights = options.class_weights
    if isinstance(weights, list) and len(weights) != num_classes:
        raise ValueError(
            f"class_weights has {len(weights)} numbers; the model has {num_classes} classes"
        )


def balanced_weights(targets: Sequence[int] | Tensor, num_classes: int) -> list[float]:
    """Inverse frequency of each class, such that the mean over samples is 1.

    A class without samples has 0.

    Example:
        >>> balanced_weights([0, 0, 0, 2], 3)
        [0.6666666865348816, 0.0, 2.0]
    """
    counts = torch.bincount(torch.as_tensor(targets), minlength=num_classes)
    present = counts > 0
    weights = torch.where(present, counts.sum() / (present.sum() * counts), 0.0)
    return weights.tolist()


def _targets(loader: Iterable[Any]) -> Sequence[int] | Tensor:
    """Targets of a loader's data set, or of its source."""
    dataset = getattr(loader, "dataset", None)
    owner = getattr(dataset, "source", dataset)
    targets: Sequence[int] | Tensor | None = getattr(owner, "targets", None)
    if targets is None:
        raise ValueError(
            'class_weights is "balanced", but the data set of train_loader has no targets to '
            "count; give it an attribute `targets`, or list a weight for every class"
        )
    return targets
