"""What a run can be told about its loss, and the loss that comes of it."""

# Annotations are not postponed: the command line reads these fields from another module.
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from manystream.choices import check_choices
from manystream.tasks import StepLoss, Task
from manystream.training.recipe.ranges import check_at_least, check_share

Loss = Literal["cross_entropy", "focal"]


@dataclass
class LossOptions:
    """Which loss training minimises.

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


def make_loss(task: Task, options: LossOptions, train_loader: Iterable[Any]) -> StepLoss:
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
