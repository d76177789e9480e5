"""What each command takes, as typed dataclasses whose comments become the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from manystream.data.loaders import DataOptions
from manystream.training import FitOptions


@dataclass
class ModelOptions:
    """Which network."""

    family: str = "li_net3"
    """How the streams are mixed."""
    depth: int = 18
    """Layers of the ResNet: 18, 34, 50 or 101."""
    width: float = 1.0
    """Multiplier of the ResNet's widths."""
    dropout: float = 0.0
    """Probability of dropping a feature before the head."""


@dataclass
class TrainOptions:
    """Train a network, measure it with every subset of its streams, and write a report."""

    out: Path | None = None
    """Folder for all that the run writes; runs/<date>-<time> by default. It must not exist yet."""
    data: DataOptions = field(default_factory=DataOptions)
    """Where images come from."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """Which network."""
    fit: FitOptions = field(default_factory=FitOptions)
    """How it is trained."""


@dataclass
class EvaluateOptions:
    """Measure a trained network with every subset of its streams, or with some taken away."""

    model: Path
    """The model.safetensors that training wrote."""
    blanked_streams: list[str] | None = None
    """Streams to take away; every subset is measured if this is left out."""
    data: DataOptions = field(default_factory=DataOptions)
    """Where images come from; val_split is measured. Streams and image size are the model's."""


@dataclass
class PredictOptions:
    """Write the class probabilities of a folder of images."""

    model: Path
    """The model.safetensors that training wrote."""
    folder: Path
    """Folder laid out as <stream>/<id>.<ext>, without classes."""
    out: Path = Path("predictions.csv")
    """CSV file to write: id, streams, class, probability, then every class's probability."""
    batch_size: int = 64
    """Samples per batch."""
    num_workers: int = 2
    """Processes that read images."""
