"""What `fit` can be told, as one typed dataclass that the command line reads too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from manystream.choices import check_choices
from manystream.dropout import ModalityDropout
from manystream.training.aids.options import AidOptions
from manystream.training.recipe.best import BestOptions
from manystream.training.recipe.dropout_options import ModalityDropoutOptions
from manystream.training.recipe.loss import LossOptions
from manystream.training.recipe.optimizer import OptimizerOptions
from manystream.training.recipe.precision import Precision
from manystream.training.recipe.ranges import check_above_zero, check_at_least
from manystream.training.recipe.run_options import RunOptions
from manystream.training.recipe.schedule import ScheduleOptions


@dataclass
class FitOptions(
    # Fields come in the order of the last base to the first.
    AidOptions,
    BestOptions,
    ModalityDropoutOptions,
    LossOptions,
    OptimizerOptions,
    ScheduleOptions,
    RunOptions,
):
    """How a network is trained.

    Raises:
        ValueError: if a number is out of its range, a value is none of its choices, or options
            contradict each other.
    """

    gradient_clip: float | None = None
    """Largest gradient norm; null leaves gradients as they are."""
    accumulate_batches: int = 1
    """Batches whose gradients are averaged for one optimizer step."""
    precision: Precision = "32-true"
    """Arithmetic, by Lightning's names; tf32 is 32-true with TF32 matrix products."""
    accelerator: str = "auto"
    """Device, by Lightning's names."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Whether steps are replayed from CUDA graphs, one for each number of rows that the streams
    have; auto does so on GPUs. Stratified modality dropout keeps these numbers few."""
    seed: int = 0
    """Seed of order, augmentation, dropout and modality dropout; a command seeds the initial
    weights with it too."""
    deterministic: bool = False
    """Whether only operations that repeat bit for bit may run; slower on a GPU."""
    loggers: list[str] | dict[str, dict[str, Any]] = field(
        default_factory=lambda: ["csv", "tensorboard"]
    )
    """Who logs into the run's folder: csv, tensorboard, or a class of lightning.pytorch.loggers; or
    with arguments, for example {csv: {}, WandbLogger: {project: rooms}}."""
    progress: bool = True
    """Whether to show a progress bar."""

    def __post_init__(self) -> None:
        check_choices(self)
        for group in FitOptions.__bases__:
            group.__post_init__(self)  # type: ignore[attr-defined]
        check_above_zero(self, "gradient_clip")
        check_at_least(self, 1, "accumulate_batches")
        check_at_least(self, 0, "seed")

    def make_dropout(self, num_streams: int) -> ModalityDropout | None:
        """Modality dropout of a network with ``num_streams`` streams; None where it is off.

        Raises:
            ValueError: if it does not fit that number of streams.
        """
        return self.build_dropout(num_streams, self.seed) if self.modality_dropout else None
