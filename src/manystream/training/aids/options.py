"""What a run can be told about the training aids."""

# Annotations are not postponed: the command line reads these fields from another module.
from dataclasses import dataclass

from manystream.training.recipe.ranges import check_at_least


@dataclass
class AidOptions:
    """What is watched and done per stream.

    Raises:
        ValueError: if a number is out of its range, or an aid lacks what it looks at.
    """

    subset_accuracy_every: int = 0
    """Measure every subset of the streams on the validation data every so many epochs; 0 never."""
    freeze_patience: int | None = None
    """Freeze a stream whose accuracy by itself has not improved in so many of these measurements;
    null freezes none."""
    balance_penalty: float = 0.0
    """Weight of a penalty on streams that contribute more or less than others to the integrated
    pathway: the variance of the logarithms of their norms, mean over the layers."""
    log_gradient_norms: bool = False
    """Whether to log the norm of the gradient of each stream's pathway and of what they share."""

    def __post_init__(self) -> None:
        check_at_least(self, 0, "subset_accuracy_every", "balance_penalty")
        check_at_least(self, 1, "freeze_patience")
        if self.freeze_patience is not None and self.subset_accuracy_every == 0:
            raise ValueError(
                f"freeze_patience is {self.freeze_patience}, but nothing measures streams by "
                "themselves; set subset_accuracy_every to 1 or more"
            )
