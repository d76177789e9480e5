"""Classification: one of K classes per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manystream.tasks.task import Answer, Loss, Quantity, Task, as_float

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection


class Classification(Task):
    """One of K classes per sample: a target is a class's number, (B,), int64.

    Args:
        num_classes: number of classes K; that of ``classes`` by default.
        classes: their names, if known.

    Raises:
        ValueError: if there are fewer than two classes, or not as many names.

    Example:
        >>> task = Classification(classes=["bed", "desk", "sofa"])
        >>> task.loss(torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor([1.0986, 1.0986])
    """

    name: ClassVar[str] = "classification"
    primary_metric = "mean_class_accuracy"

    def __init__(
        self, num_classes: int | None = None, classes: Sequence[str] | None = None
    ) -> None:
        if num_classes is None:
            num_classes = len(classes or ())
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; expected at least 2")
        if classes is not None and len(classes) != num_classes:
            raise ValueError(f"classes are {len(classes)} names; num_classes is {num_classes}")
        self.num_outputs = num_classes
        self.classes = None if classes is None else tuple(classes)

    def check_target(self, target: Any, num_samples: int, ids: Sequence[str] | None = None) -> None:
        """Refuse what is no class of each sample.

        Raises:
            ValueError: naming the first sample whose class there is not.
        """
        if not isinstance(target, Tensor):
            super().check_target(target, num_samples, ids)
            raise ValueError(f"target is {type(target).__name__}; expected a torch.Tensor")
        if target.dtype != torch.int64 or target.shape != (num_samples,):
            raise ValueError(
                f"target is {target.dtype} of shape {tuple(target.shape)}; "
                f"expected int64 of shape ({num_samples},)"
            )
        if target.is_cuda:  # to read it back would wait for the device
            return
        strays = ((target < 0) | (target >= self.num_outputs)).nonzero().flatten().tolist()
        if strays:
            sample = f"sample {strays[0]} of the batch" if ids is None else repr(ids[strays[0]])
            raise ValueError(
                f"the target of {sample} is {int(target[strays[0]])}; expected 0 to "
                f"{self.num_outputs - 1}, the model has {self.num_outputs} classes"
            )

    def loss(self, output: Tensor, target: Any) -> Tensor:
        """Cross entropy of each view, shapes (V, K) and (V,) to (V,)."""
        return F.cross_entropy(as_float(output), target, reduction="none")

    def training_loss(self, options: Any, targets: Any | None = None) -> Loss:
        """Make the loss that the options name: cross entropy or focal, smoothed, weighted."""
        weights = options.class_weights
        if isinstance(weights, str):
            weights = self._balanced_weights(targets)
        elif weights is not None and len(weights) != self.num_outputs:
            raise ValueError(
                f"class_weights has {len(weights)} numbers; "
                f"the model has {self.num_outputs} classes"
            )
        return ClassificationLoss(
            options.focal_gamma if options.loss == "focal" else 0.0,
            options.label_smoothing,
            None if weights is None else torch.tensor(weights),
        )

    def metrics(self) -> MetricCollection:
        """Accuracy and mean class accuracy, of probabilities or logits."""
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy

        from manystream.tasks.class_metrics import MeanClassAccuracy

        # Validation would wait for the device at every step; the boundary has checked.
        accuracy = MulticlassAccuracy(self.num_outputs, average="micro", validate_args=False)
        mean_class_accuracy = MeanClassAccuracy(self.num_outputs)
        return MetricCollection(
            {"accuracy": accuracy, "mean_class_accuracy": mean_class_accuracy},
            compute_groups=False,
        )

    def evaluation_metrics(self) -> MetricCollection:
        """Make those of training, and the calibration error."""
        from manystream.tasks.class_metrics import CalibrationError

        metrics = self.metrics()
        metrics.add_metrics({"calibration_error": CalibrationError(self.num_outputs)})
        return metrics

    def chance_level(self) -> Metric:
        """Count classes for what naming the most frequent one of the measured samples reaches."""
        from manystream.tasks.class_metrics import ChanceLevel

        return ChanceLevel(self.num_outputs)

    def predict(self, output: Tensor) -> Tensor:
        """Probabilities, (V, K)."""
        return as_float(output).softmax(dim=1)

    def quantities(self) -> dict[str, Quantity]:
        """List mean class accuracy, then accuracy, as shares."""
        return {
            "mean_class_accuracy": Quantity("mean class accuracy", True, 1 / self.num_outputs),
            "accuracy": Quantity("accuracy", is_share=True),
        }

    def evaluation_quantities(self) -> dict[str, Quantity]:
        """Add the calibration error as a share."""
        calibration = Quantity(
            "calibration error",
            is_share=True,
            meaning="The calibration error says how far confidence is from the share of right "
            "answers.",
        )
        return {**self.quantities(), "calibration_error": calibration}

    def class_names(self) -> tuple[str, ...]:
        """Return the classes' names, or their numbers where they have none."""
        return self.classes or tuple(map(str, range(self.num_outputs)))

    def describe(self, predictions: Any) -> list[tuple[str, list[Any]]]:
        """List the most probable class, its probability, and every class's."""
        names = self.class_names()
        best, winner = predictions.max(dim=1)
        every = [(name, column.tolist()) for name, column in zip(names, predictions.T, strict=True)]
        taken = [names[number] for number in winner.tolist()]
        return [("class", taken), ("probability", best.tolist()), *every]

    def answers(self, predictions: Any, target: Any) -> list[Answer]:
        """The most probable class, its probability, and whether it is the sample's."""
        best, winner = predictions.max(dim=1)
        taken, right = self.describe_target(winner), (winner == target).tolist()
        return [*map(Answer, taken, best.tolist(), right)]

    def describe_target(self, target: Any) -> list[str]:
        """Names of the classes."""
        names = self.class_names()
        return [names[number] for number in target.tolist()]

    def to_dict(self) -> dict[str, Any]:
        """Give number and names of the classes."""
        return {"num_classes": self.num_outputs, "classes": self.classes}

    def _balanced_weights(self, targets: Any | None) -> list[float]:
        if targets is None:
            raise ValueError(
                'class_weights is "balanced", but the data set of train_loader has no targets to '
                "count; give it an attribute `targets`, or list a weight for every class"
            )
        return balanced_weights(targets, self.num_outputs)


class ClassificationLoss(nn.Module):
    r"""Weighted, focused cross entropy of each view.

    .. math::
        \ell_b = w_{y_b} (1 - p_b)^\gamma \,
            \Bigl(-\sum_c q_{bc} \log p_{bc}\Bigr), \qquad p_b = p_{b y_b}

    with the smoothed target :math:`q_{bc} = (1 - s) [c = y_b] + s / K`. A step's loss is divided by
    the number of samples, not by their weights as in ``nn.CrossEntropyLoss``, so that accumulated
    or distributed batches of one size give the gradient of the joined batch.

    Args:
        gamma: focus :math:`\gamma`; 0 counts all samples alike.
        label_smoothing: smoothing s.
        class_weights: weight w of each class, shape (K,); 1 by default.

    Source:
        Lin et al., "Focal Loss for Dense Object Detection", 2017, equation 5.

    Example:
        >>> loss = ClassificationLoss(class_weights=torch.tensor([1.0, 3.0]))
        >>> loss(torch.zeros(2, 2), torch.tensor([0, 1])) / torch.tensor(2.0).log()
        tensor([1., 3.])
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
        """Map (V, K) and (V,), int64, to (V,)."""
        logits = as_float(logits)
        losses = F.cross_entropy(
            logits, target, label_smoothing=self.label_smoothing, reduction="none"
        )
        if self.gamma > 0:
            right = F.cross_entropy(logits, target, reduction="none").neg().exp()
            # At p = 1 a gamma below 1 would have an infinite slope.
            losses = losses * (1 - right).clamp_min(torch.finfo(right.dtype).eps) ** self.gamma
        if self.class_weights is not None:
            losses = losses * self.class_weights.to(losses.dtype)[target]
        return losses


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
