"""What `fit` can be told, as one typed dataclass that the command line reads too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from manystream.dropout import ModalityDropout, Schedule


@dataclass
class FitOptions:
    """How a network is trained.

    Raises:
        ValueError: if a number is out of its range.
    """

    epochs: int = 30
    """Passes over the training data."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW; it warms up linearly and then falls as a cosine to zero."""
    weight_decay: float = 0.05
    """Weight decay of kernels; norms, biases and scalars have none."""
    warmup_epochs: float = 1.0
    """Length of the warm-up in epochs."""
    label_smoothing: float = 0.0
    """Probability mass that is spread over the wrong classes."""
    gradient_clip: float | None = None
    """Largest gradient norm; null leaves gradients as they are."""
    modality_dropout: bool = False
    """Whether training samples lose streams at random."""
    modality_dropout_rate: float | list[float] = 0.2
    """Final probability that a sample loses a stream, or one per stream, for example [0.1,0.3]."""
    modality_dropout_schedule: Schedule = "ramp_up"
    """Whether the probability rises from 0 or falls from 1."""
    modality_dropout_start: int = 0
    """First epoch of the ramp."""
    modality_dropout_ramp: int = 0
    """Length of the ramp in epochs; 0 has the final probability at once."""
    modality_dropout_max_blanked: int = 1
    """Most streams that a sample may lose; at least one always stays."""
    modality_dropout_stratified: bool = False
    """Whether every batch loses the same number of rows per stream."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    """Arithmetic, by Lightning's names."""
    accelerator: str = "auto"
    """Device, by Lightning's names."""
    seed: int = 0
    """Seed of order, augmentation, dropout and modality dropout; a command seeds the initial
    weights with it too."""
    progress: bool = True
    """Whether to show a progress bar."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; expected at least 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; expected [0, 1)")
        for name in ("learning_rate", "gradient_clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; expected more than 0")
        for name in ("weight_decay", "warmup_epochs", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        self._check_dropout()

    def make_dropout(self, num_streams: int) -> ModalityDropout | None:
        """Modality dropout of a network with ``num_streams`` streams; None where it is off.

        Raises:
            ValueError: if it does not fit that number of streams.
        """
        return self._dropout(num_streams) if self.modality_dropout else None

    def _check_dropout(self) -> None:
        """Check what does not depend on the number of streams, also where dropout is off."""
        rate = self.modality_dropout_rate
        fewest = len(rate) if isinstance(rate, list) else self.modality_dropout_max_blanked + 1
        self._dropout(max(fewest, 2))

    def _dropout(self, num_streams: int) -> ModalityDropout:
        return ModalityDropout(
            num_streams,
            self.modality_dropout_rate,
            schedule=self.modality_dropout_schedule,
            start=self.modality_dropout_start,
            ramp=self.modality_dropout_ramp,
            max_blanked=self.modality_dropout_max_blanked,
            stratified=self.modality_dropout_stratified,
            seed=self.seed,
        )
