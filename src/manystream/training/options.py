"""What `fit` can be told, as one typed dataclass that the command line reads too.

The command line reads it before it knows whether anything will be trained, so nothing is imported
here that needs torch: what a check calls is imported where something was asked for.
"""

# Annotations are not postponed: to read postponed ones, jsonargparse imports what stands under
# TYPE_CHECKING.
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from manystream.choices import check_choices, did_you_mean

if TYPE_CHECKING:
    from manystream.dropout import ModalityDropout
    from manystream.presence import Presence, Views
    from manystream.tasks import Task

Precision = Literal["32-true", "tf32", "bf16-mixed", "16-mixed", "64-true"]


class Monitor(NamedTuple):
    """What tells a better epoch from a worse one.

    Attributes:
        name: of a logged value.
        mode: whether the least or the most of it is best.
    """

    name: str
    mode: Literal["min", "max"]

    def is_better(self, value: float, best: float | None) -> bool:
        """Compare a value with the best so far, None where there is none; NaN is never better."""
        sign = 1 if self.mode == "max" else -1
        return sign * value > (-math.inf if best is None else sign * best)


@dataclass
class FitOptions:
    """How a network is trained.

    Raises:
        ValueError: if a number is out of its range, a value is none of its choices, or options
            contradict each other.
    """

    # The length of a run, and its learning rate.
    epochs: int = 30
    """Passes over the training data."""
    schedule: Literal["cosine", "step", "one_cycle", "plateau", "constant"] = "cosine"
    """What follows a linear warm-up: cosine falls to final_learning_rate; step multiplies by
    learning_rate_factor at step_epochs; plateau does so when monitor has not improved for
    plateau_patience epochs; constant stays. one_cycle rises and falls over the whole run, and the
    momentum falls and rises."""
    warmup_epochs: float | None = None
    """Length of the warm-up in epochs; 1 by default, and 30% of a one_cycle run."""
    final_learning_rate: float = 0.0
    """Where cosine ends, and the least that plateau goes down to."""
    step_epochs: int | list[int] = 10
    """Epochs at which step acts, for example [30,60,80]; or one number, every so many epochs."""
    learning_rate_factor: float = 0.1
    """What step and plateau multiply the learning rate by."""
    plateau_patience: int = 5
    """Epochs without improvement that plateau lets pass."""

    # The optimizer.
    optimizer: str | Callable[..., Any] = "adamw"
    """adamw, sgd (momentum 0.9, Nesterov), or the path of a class, for example torch.optim.RAdam;
    in Python also anything that takes parameter groups and lr."""
    optimizer_arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimizer, for example {betas: [0.9, 0.95]}."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    learning_rate_multipliers: dict[str, float] = field(default_factory=dict)
    """Multiplier of the learning rate for parts of the network, for example {depth: 0.5, stem: 2}:
    streams by name; shared, the integrated pathway and the head; stem, the first layer of every
    pathway. A stream's stem has both."""
    weight_decay: float = 0.05
    """Weight decay of kernels; norms, biases and scalars have none."""
    gradient_clip: float | None = None
    """Largest gradient norm; null leaves gradients as they are."""
    accumulate_batches: int = 1
    """Batches whose gradients are averaged for one optimizer step."""

    # The loss of a classification.
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """cross_entropy, or focal, which counts a sample the less the surer the network is of it."""
    focal_gamma: float = 2.0
    """How much less, for focal; 0 is cross_entropy."""
    label_smoothing: float = 0.0
    """Probability mass that is spread over the wrong classes."""
    class_weights: Literal["balanced"] | list[float] | None = None
    """How much a sample of each class counts, a number per class; balanced takes the inverse of the
    class's frequency in training, 1 on average."""

    # Which streams training samples lose.
    modality_dropout: bool = False
    """Whether training samples lose streams at random."""
    modality_dropout_rate: float | list[float] = 0.2
    """Final probability that a sample loses a stream, or one per stream, for example [0.1,0.3]."""
    modality_dropout_schedule: Literal["ramp_up", "ramp_down"] = "ramp_up"
    """Whether the probability rises from 0 or falls from 1."""
    modality_dropout_start: int = 0
    """First epoch of the ramp."""
    modality_dropout_ramp: int = 0
    """Length of the ramp in epochs; 0 has the final probability at once."""
    modality_dropout_max_blanked: int = 1
    """Most streams that a sample may lose; at least one always stays."""
    modality_dropout_stratified: bool = False
    """Whether every batch loses the same number of rows per stream."""

    # With which subsets of their streams training samples are seen.
    subsets: Literal["all", "auto"] | int | None = None
    """Train every sample with all subsets of its streams at once, while each stream is computed
    once: all; or with its full set and others, so many in all; null trains the full set alone.
    Not together with modality_dropout, which it replaces. auto is all for two to four streams
    where modality_dropout is off."""
    subset_weights: dict[str, float] = field(default_factory=dict)
    """How much the loss of a subset counts beside the others of a sample, for example {rgb: 2};
    1 where nothing is said."""

    # Which weights a run leaves.
    monitor: str | None = None
    """What tells a better epoch from a worse one: a metric of the task or the loss, in validation
    or training, for example val_loss or train_accuracy; by default the task's first metric in
    validation, val_mean_class_accuracy for classes."""
    early_stopping_patience: int | None = None
    """Epochs without improvement after which training ends; null trains all epochs."""
    restore_best: bool = False
    """Whether the weights of the best epoch are the result, instead of those of the last."""
    ema_decay: float | None = None
    """Decay per step of an exponential moving average of the weights, for example 0.999, which is
    then what is validated and kept; null has none."""

    # What is watched and done per stream.
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

    # Arithmetic and devices.
    precision: Precision = "32-true"
    """Arithmetic, by Lightning's names; tf32 is 32-true with TF32 matrix products."""
    accelerator: str = "auto"
    """Device, by Lightning's names."""
    devices: int = 1
    """Devices to train on, each with a process and ``batch_size`` samples of its own. Under
    torchrun, the processes it started."""
    strategy: str = "auto"
    """How several processes train together, by Lightning's names; auto is ddp_after_backward, with
    which steps may be replayed from CUDA graphs."""
    sync_batchnorm: bool = False
    """Whether batch norms count the present rows of all processes together. Memory modes then keep
    what these norms give."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Whether steps are replayed from CUDA graphs, one for each number of rows that the streams
    have; auto does so on GPUs. Stratified modality dropout keeps these numbers few."""
    seed: int = 0
    """Seed of order, augmentation, dropout and modality dropout; a command seeds the initial
    weights with it too."""
    deterministic: bool = False
    """Whether only operations that repeat bit for bit may run; slower on a GPU."""

    # What is written.
    checkpoint_every_steps: int | None = None
    """Optimizer steps between states within an epoch; null saves one before each epoch."""
    loggers: list[str] | dict[str, dict[str, Any]] = field(
        default_factory=lambda: ["csv", "tensorboard"]
    )
    """Who logs into the run's folder: csv, tensorboard, or a class of lightning.pytorch.loggers; or
    with arguments, for example {csv: {}, WandbLogger: {project: rooms}}."""
    progress: bool = True
    """Whether to show a progress bar."""

    def __post_init__(self) -> None:
        check_choices(self)
        _check_numbers(self)
        _check_schedule(self)
        _check_optimizer(self)
        _check_class_weights(self)
        _check_dropout(self)
        _check_subsets(self)
        if self.freeze_patience is not None and self.subset_accuracy_every == 0:
            raise ValueError(
                f"freeze_patience is {self.freeze_patience}, but nothing measures streams by "
                "themselves; set subset_accuracy_every to 1 or more"
            )

    def monitored(self, task: "Task") -> Monitor:
        """Find what ``monitor`` means for a task, and whether more of it is better.

        Raises:
            ValueError: if the task has no such metric.
        """
        name = self.monitor or f"val_{task.primary_metric}"
        metrics = [*task.quantities(), "loss"]
        known = [f"{of}_{metric}" for of in ("val", "train") for metric in metrics]
        if name not in known:
            raise ValueError(
                f"monitor is {name!r}; expected one of {', '.join(known)}"
                f"{did_you_mean(name, known)}"
            )
        metric = name.partition("_")[2]
        if metric == "loss":
            return Monitor(name, "min")
        is_primary = metric == task.primary_metric
        more = None if is_primary else task.metrics()[metric].higher_is_better
        return Monitor(name, "max" if (task.higher_is_better if more is None else more) else "min")

    def make_dropout(self, num_streams: int) -> "ModalityDropout | None":
        """Make modality dropout for a network with so many streams; None where it is off.

        Raises:
            ValueError: if it does not fit that number of streams.
        """
        return _dropout(self, num_streams) if self.modality_dropout else None

    def make_views(self, stream_names: "Sequence[str]") -> "Callable[[Presence], Views] | None":
        """Make what says with which subsets samples are seen; None where all have one view.

        Raises:
            ValueError: if it does not fit these streams.
        """
        subsets = self.subsets
        if subsets == "auto":
            few = 2 <= len(stream_names) <= _MOST_STREAMS_OF_AUTO
            subsets = "all" if few and not self.modality_dropout else None
        if subsets is None:
            if self.subset_weights:
                raise ValueError(
                    f"subset_weights is {self.subset_weights}, but subsets is 'auto', which here "
                    "trains the full set alone, so nothing would use it; set subsets to 'all', or "
                    "leave subset_weights out"
                )
            return None
        from manystream.dropout import subset_views

        return subset_views(stream_names, subsets, self.subset_weights)

    def distribution(self) -> dict[str, Any]:
        """Give the arguments of ``lightning.pytorch.Trainer`` that say where a run trains.

        Raises:
            ValueError: if ``devices`` are not as many as torchrun has started.
        """
        import torch

        from manystream.training.distributed import AFTER_BACKWARD

        devices, nodes = self.devices, 1
        if torch.distributed.is_torchelastic_launched():
            devices = int(os.environ["LOCAL_WORLD_SIZE"])
            nodes = int(os.environ["WORLD_SIZE"]) // devices
            if self.devices not in (1, devices):
                raise ValueError(
                    f"devices is {self.devices}, but torchrun started {devices} processes; leave "
                    "devices out"
                )
        together = self.strategy == "auto" and devices * nodes > 1
        strategy = AFTER_BACKWARD if together else self.strategy
        return {"devices": devices, "num_nodes": nodes, "strategy": strategy}


def dropout_off() -> dict[str, Any]:
    """Give the options of a run without modality dropout, all at their defaults."""
    return {name: value for name, value in _DEFAULTS.items() if name.startswith("modality_dropout")}


_MOST_STREAMS_OF_AUTO = 4  # with 15 subsets; beyond, a step would be mostly these

_DEFAULTS = {field.name: field.default for field in fields(FitOptions)}

_RANGES: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
    "more than 0": (lambda value: value > 0, ("learning_rate", "gradient_clip")),
    "between 0 and 1": (lambda value: 0 < value < 1, ("learning_rate_factor",)),
    "[0, 1)": (lambda value: 0 <= value < 1, ("label_smoothing", "ema_decay")),
    "at least 1": (
        lambda value: value >= 1,
        (
            "epochs",
            "accumulate_batches",
            "devices",
            "checkpoint_every_steps",
            "early_stopping_patience",
            "freeze_patience",
        ),
    ),
    "0 or more": (
        lambda value: value >= 0,
        (
            "warmup_epochs",
            "final_learning_rate",
            "plateau_patience",
            "weight_decay",
            "focal_gamma",
            "subset_accuracy_every",
            "balance_penalty",
            "seed",
        ),
    ),
}


def _check_numbers(options: FitOptions) -> None:
    for expected, (is_right, names) in _RANGES.items():
        for name in names:
            value = getattr(options, name)
            if value is None and _DEFAULTS[name] is None:
                continue
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not (is_number and is_right(value)):
                raise ValueError(f"{name} is {value}; expected {expected}")


def _check_schedule(options: FitOptions) -> None:
    every = options.step_epochs
    epochs = every if isinstance(every, list) else [every]
    if not epochs or min(epochs) < 1 or sorted(set(epochs)) != epochs:
        raise ValueError(
            f"step_epochs is {every}; expected a number of epochs from 1, or rising ones"
        )
    if options.schedule == "one_cycle" and (options.warmup_epochs or 0) >= options.epochs:
        raise ValueError(
            f"warmup_epochs is {options.warmup_epochs}; a one_cycle run of {options.epochs} epochs "
            "rises for less than that"
        )


def _check_optimizer(options: FitOptions) -> None:
    for name, multiplier in options.learning_rate_multipliers.items():
        if not 0 < multiplier < math.inf:
            raise ValueError(
                f"learning_rate_multipliers has {name}: {multiplier}; expected more than 0"
            )
    is_default = options.optimizer == _DEFAULTS["optimizer"] and not options.optimizer_arguments
    if isinstance(options.optimizer, str) and not is_default:
        import torch

        from manystream.training.optimizer import build_optimizer

        groups = [{"params": [torch.zeros(1, requires_grad=True)]}]
        build_optimizer(
            options.optimizer, groups, options.learning_rate, options.optimizer_arguments
        )


def _check_class_weights(options: FitOptions) -> None:
    weights = options.class_weights
    if isinstance(weights, list) and not (all(w >= 0 for w in weights) and any(weights)):
        raise ValueError(f"class_weights is {weights}; expected numbers from 0, one above 0")


def _check_dropout(options: FitOptions) -> None:
    """Check what does not depend on the number of streams, also where dropout is off."""
    said = {
        name: value
        for name, default in dropout_off().items()
        if (value := getattr(options, name)) != default
    }
    if not said:
        return
    rate = options.modality_dropout_rate
    fewest = len(rate) if isinstance(rate, list) else options.modality_dropout_max_blanked + 1
    _dropout(options, max(fewest, 2))
    if options.modality_dropout:
        return
    if not any(rate if isinstance(rate, list) else [rate]):
        said.pop("modality_dropout_rate", None)
    if said:
        settings = ", ".join(f"{name} is {value}" for name, value in said.items())
        raise ValueError(
            f"{settings}, but modality_dropout is off, so nothing would use it; set "
            "modality_dropout to true (at a rate of 0 it takes nothing away), or leave the other "
            "out"
        )


def _check_subsets(options: FitOptions) -> None:
    subsets, weights = options.subsets, options.subset_weights
    if subsets is None:
        if weights:
            raise ValueError(
                f"subset_weights is {weights}, but subsets is not set, so nothing would use it; "
                "set subsets to 'all'"
            )
        return
    if options.modality_dropout and subsets != "auto":
        raise ValueError(
            f"subsets is {subsets!r} and modality_dropout is on; training with subsets sees every "
            "sample without some of its streams already: leave one of the two out"
        )
    if not isinstance(subsets, str) and (isinstance(subsets, bool) or subsets < 2):
        raise ValueError(f"subsets is {subsets!r}; expected 'all', or 2 or more")
    for name, weight in weights.items():
        if not 0 < weight < math.inf:
            raise ValueError(f"subset_weights has {name}: {weight}; expected more than 0")


def _dropout(options: FitOptions, num_streams: int) -> "ModalityDropout":
    from manystream.dropout import ModalityDropout

    return ModalityDropout(
        num_streams,
        options.modality_dropout_rate,
        schedule=options.modality_dropout_schedule,
        start=options.modality_dropout_start,
        ramp=options.modality_dropout_ramp,
        max_blanked=options.modality_dropout_max_blanked,
        stratified=options.modality_dropout_stratified,
        seed=options.seed,
    )
