"""What a run can be told about modality dropout."""

# Annotations are not postponed: the command line reads these fields from another module.
from dataclasses import dataclass, fields
from typing import Any

from manystream.dropout import ModalityDropout, Schedule


@dataclass
class ModalityDropoutOptions:
    """Which streams training samples lose at random.

    Raises:
        ValueError: if a number is out of its range, or something is said of modality dropout that
            is off.
    """

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

    def __post_init__(self) -> None:
        """Check what does not depend on the number of streams, also where dropout is off."""
        rate = self.modality_dropout_rate
        fewest = len(rate) if isinstance(rate, list) else self.modality_dropout_max_blanked + 1
        self.build_dropout(max(fewest, 2), seed=0)
        if not self.modality_dropout:
            self._check_nothing_said()

    def _check_nothing_said(self) -> None:
        said = {
            name: value
            for name, default in dropout_off().items()
            if (value := getattr(self, name)) != default
        }
        rate = self.modality_dropout_rate
        if not any(rate if isinstance(rate, list) else [rate]):
            said.pop("modality_dropout_rate", None)
        if said:
            settings = ", ".join(f"{name} is {value}" for name, value in said.items())
            raise ValueError(
                f"{settings}, but modality_dropout is off, so nothing would use it; set "
                "modality_dropout to true (at a rate of 0 it takes nothing away), or leave the "
                "other out"
            )

    def build_dropout(self, num_streams: int, seed: int) -> ModalityDropout:
        """Modality dropout of a network with ``num_streams`` streams.

        Raises:
            ValueError: if it does not fit that number of streams.
        """
        return ModalityDropout(
            num_streams,
            self.modality_dropout_rate,
            schedule=self.modality_dropout_schedule,
            start=self.modality_dropout_start,
            ramp=self.modality_dropout_ramp,
            max_blanked=self.modality_dropout_max_blanked,
            stratified=self.modality_dropout_stratified,
            seed=seed,
        )


def dropout_off() -> dict[str, Any]:
    """Give the options of a run without modality dropout, all at their defaults."""
    return {field.name: field.default for field in fields(ModalityDropoutOptions)}
