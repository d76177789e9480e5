"""What each command takes, as typed dataclasses whose comments become the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from manystream.choices import check_choices, did_you_mean
from manystream.data.image import MAX_PIXELS
from manystream.data.options import DataOptions
from manystream.data.problems import OnError
from manystream.data.streams import LengthUnit
from manystream.evaluation import EvaluationOptions
from manystream.training import FitOptions


@dataclass
class ResNetOptions:
    """Family and size of the network.

    Raises:
        ValueError: if a value is none of its choices.
    """

    family: str = "li_net3"
    """How the streams are mixed: li_net3, li_net3_soma or direct_mixing_conv; or, to compare with,
    late_fusion, early_fusion or single_stream."""
    depth: int = 18
    """Layers of the ResNet: 18, 34, 50 or 101."""
    width: float = 1.0
    """Multiplier of the ResNet's widths."""
    dropout: float = 0.0
    """Probability of dropping a feature before the head."""
    memory: Literal["fast", "balanced", "lean", "min"] = "fast"
    """What a training step keeps: from left to right less memory and more time, and the same
    gradients."""

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass
class ModelOptions(ResNetOptions):
    """Which network."""

    pretrained: dict[str, Path] | None = None
    """Weights of an ordinary ResNet for some streams, as {stream: file}."""
    subset_norms: bool | None = None
    """Whether the integrated pathway of li_net3 has a batch norm for every subset of the streams;
    by default where training sees them."""


@dataclass
class TrainOptions:
    """Train a network, measure it with every subset of its streams, and write a report."""

    out: Path | None = None
    """Folder for all that the run writes; runs/<date>-<time> by default. It must not exist yet,
    unless the run in it is resumed."""
    resume: bool = False
    """Go on with the run in --out, cut off at any moment, given the options it was started with.
    Where nothing was saved yet, the run begins."""
    data: DataOptions = field(default_factory=DataOptions)
    """Where images come from."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """Which network."""
    fit: FitOptions = field(default_factory=lambda: FitOptions(subsets="auto"))
    """How it is trained."""


@dataclass
class EvaluateOptions:
    """Measure a trained network when sensors fail, and write a report.

    With every subset of its streams, with streams lost at random, and with noise and darkness on
    one stream; or only with some streams taken away.
    """

    model: Path
    """The model.safetensors that training wrote."""
    blanked_streams: list[str] | None = None
    """Streams to take away, for example [depth]; only what is left is measured, and nothing is
    written."""
    conditions: EvaluationOptions = field(default_factory=EvaluationOptions)
    """What to measure besides every subset."""
    out: Path | None = None
    """Folder for report, figures and numbers; runs/evaluate-<date>-<time> by default."""
    data: DataOptions = field(default_factory=DataOptions)
    """Where images come from; val_split is measured. Streams and image size are the model's."""


@dataclass
class PredictOptions:
    """Write the class probabilities of a folder of images.

    Raises:
        ValueError: if a value is none of its choices.
    """

    model: Path
    """The model.safetensors that training wrote."""
    folder: Path
    """Folder laid out as <stream>/<id>.<ext>, without classes."""
    out: Path = Path("predictions.csv")
    """CSV file to write, which must not exist yet: id, streams, class, probability, then every
    class's probability."""
    batch_size: int = 64
    """Samples per batch."""
    num_workers: int = 2
    """Processes that read images."""
    on_error: OnError = "raise"
    """What an unreadable image does: stop before predicting, or count as absent and be reported."""
    units: dict[str, LengthUnit] | None = None
    """Unit of a depth stream's files, as {stream: m, dm, cm, mm, um, in or ft}, if the model takes
    depth in metres."""
    max_pixels: int = MAX_PIXELS
    """Height times width above which an image is not decoded and counts as unreadable."""

    def __post_init__(self) -> None:
        check_choices(self)


WAYS = {
    "every_subset": "every sample is trained with all subsets of its streams at once",
    "modality_dropout": "training samples lose streams at random",
    "plain": "training takes samples as they come, and an absent stream is left out",
    "zero_filling": "absent images are zeros as stored: black, or depth without a reading",
    "mean_imputation": "absent images are the mean of the training images",
    "ensemble": "a network for each stream, whose probabilities are averaged",
    "late_fusion": "a network for each stream, whose features are joined; absent ones are zero",
}
"""Ways to deal with a missing sensor, and what each is."""


@dataclass
class CompareOptions:
    """Train networks that deal with a missing sensor in several ways, and compare them.

    Prints one table: accuracy for every subset of the streams on the same samples, what guessing
    reaches, parameters, the memory and time of a training step, and the time of training.

    Raises:
        ValueError: if there is no way or family of a name, one is named twice, or an option is
            given that none would use.
    """

    ways: list[str] | None = None
    """Ways to deal with a missing sensor; all by default, unless families are named. every_subset
    trains every sample with all subsets of its streams at once (fit.subsets: with so many), with a
    batch norm for each subset where model.family has batch norm. modality_dropout blanks streams in
    training, as fit says, or 48% of the samples in the end. plain trains with everything there is.
    These three leave an absent stream out. zero_filling and mean_imputation have a network that
    always gets every stream: in training and evaluation an absent image is replaced, by zeros as
    stored (black, or depth without a reading), or by the mean of the stream's training images,
    pixel by pixel. ensemble trains a network for each stream by itself and averages the
    probabilities of those that are there. late_fusion joins the features of a network for each
    stream."""
    families: list[str] | None = None
    """Families to train as fit says; single_stream has a run for every stream. With ways, they are
    trained too."""
    out: Path | None = None
    """Folder for all that is written; runs/compare-<date>-<time> by default."""
    data: DataOptions = field(default_factory=DataOptions)
    """Where images come from."""
    model: ResNetOptions = field(default_factory=ResNetOptions)
    """Size of every network, and the family of those that a way does not name."""
    fit: FitOptions = field(default_factory=FitOptions)
    """How each is trained; modality dropout and subsets are for the ways of these names, and for
    families."""

    def __post_init__(self) -> None:
        from manystream.models.families import family

        if self.ways is None and self.families is None:
            self.ways = [*WAYS]
        self.ways, self.families = self.ways or [], self.families or []
        for name in self.ways:
            if name not in WAYS:
                raise ValueError(
                    f"unknown way {name!r}; expected one of {', '.join(WAYS)}"
                    f"{did_you_mean(name, WAYS)}"
                )
        for name in (*self.families, self.model.family):
            family(name)
        names = [*self.ways, *self.families]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"--ways is {self.ways} and --families is {self.families}; expected one or more "
                "in all, each once"
            )
        self._check_all_is_used()
        if self.fit.devices > 1:
            raise ValueError(
                f"--fit.devices is {self.fit.devices}; compare trains in one process, use train"
            )

    def _check_all_is_used(self) -> None:
        if not self.ways and self.model.family != ResNetOptions.family:
            raise ValueError(
                f"--model.family is {self.model.family}, but --families says what is trained, and "
                "there are no --ways that would use it"
            )
        if self.families:
            return
        for way, option, is_on in (
            ("modality_dropout", "modality_dropout", self.fit.modality_dropout),
            ("every_subset", "subsets", self.fit.subsets is not None),
        ):
            if is_on and way not in (self.ways or []):
                raise ValueError(
                    f"--ways is {self.ways}, so nothing would use --fit.{option}; name {way!r} "
                    "too, or leave it out"
                )


@dataclass
class ConvertOptions:
    """Turn a checkpoint of the original implementation into a model file of manystream."""

    checkpoint: Path
    """File of torch.save, or .safetensors."""
    out: Path
    """Model file to write; it must not exist yet."""
    streams: list[str] | None = None
    """Names of the streams, in order; their numbers by default."""


@dataclass
class InspectOptions:
    """Show how much each stream contributes to the integrated pathway at every layer.

    Prints, plots and writes it for one batch, and the learned mixing weights beside it.
    """

    model: Path
    """The model.safetensors that training wrote."""
    out: Path | None = None
    """Folder to write into; runs/inspect-<date>-<time> by default."""
    data: DataOptions = field(default_factory=DataOptions)
    """Where images come from; the first batch of val_split is looked at."""
