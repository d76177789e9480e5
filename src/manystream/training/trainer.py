"""Set up a Lightning Trainer, its arithmetic included, and leave no trace of it."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch import Tensor

from manystream.batch import StreamBatch
from manystream.training.options import Precision

_IGNORED_WARNINGS = (
    ".*does not have many workers.*",  # the user's choice
    ".*have no `val_dataloader`.*",  # the user's choice as well
    ".*across ranks is zero.*",  # an empty loader is an error of ours
    ".*logging interval.*",  # a small data set has few steps per epoch
    ".*LeafSpec.*is deprecated.*",  # between Lightning and torch
    # Lightning steps the schedule after the optimizer; this is a loss scaler that left a step out.
    ".*call of .lr_scheduler.step.* before .optimizer.step.*",
    ".*Grad strides do not match bucket view strides.*",  # a 1×1 kernel has no layout
)


class Batches:
    """A loader as a plain iterable, of which Lightning makes no more than that.

    Lightning would take a list of batches for a list of loaders, and to predict it would rebuild a
    DataLoader's sampler.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]


@contextmanager
def trainer_session(*, progress: bool, **arguments: Any) -> Iterator[pl.Trainer]:
    """Provide a Lightning Trainer, on one device unless told, that writes and prints as asked.

    Raises:
        ValueError: if there is no such accelerator, or a package is missing that the arguments ask
            for.
        KeyboardInterrupt: on Ctrl-C; Lightning alone would end the process after its clean-up.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        with _quiet():
            yield _make_trainer(enable_progress_bar=progress, **arguments)
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)


def _make_trainer(**arguments: Any) -> pl.Trainer:
    settings = {
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "devices": 1,
        **arguments,
    }
    try:
        trainer = pl.Trainer(**settings)
    except (MisconfigurationException, ImportError) as error:
        asked = [
            f"{name} is {arguments[name]!r}"
            for name, usual in _USUAL.items()
            if arguments.get(name, usual[0]) not in usual
        ]
        raise ValueError(f"{', '.join(asked) or 'no trainer can be set up'}: {error}") from error
    trainer._signal_connector = _SigtermIsOurs(trainer)
    # Asks in every step, and has the host wait for the answer.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


_USUAL: dict[str, tuple[Any, ...]] = {
    "accelerator": ("auto", "cpu"),
    "devices": (1,),
    "strategy": ("auto",),
    "precision": (None, "32-true"),
}
"""What needs neither hardware nor packages."""


class _SigtermIsOurs(_SignalConnector):
    """Leaves SIGTERM as it is, see :mod:`manystream.training.termination`.

    Lightning's handler waits for the other processes, which may wait for this one elsewhere, and
    what it makes of the signal is an end like any other.
    """

    def register_signal_handlers(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        super().register_signal_handlers()
        self._register_signal(signal.SIGTERM, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back Lightning's remarks about hardware and its hints; warnings and errors stay."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _IGNORED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)


class StreamDoublePrecision(DoublePrecision):
    """Lightning's 64-true, which looks for floating point in anything but a frozen dataclass."""

    def convert_input(self, data: Any) -> Any:
        """Give a batch in double precision."""
        if isinstance(data, StreamBatch):
            return data.map(Tensor.double)
        return super().convert_input(data)


def lightning_precision(precision: Precision) -> str | None:
    """Name it for Lightning; None for 64-true, whose plugin is given to it instead.

    TF32 is float32 to everyone but the matrix product.
    """
    return {"tf32": "32-true", "64-true": None}.get(precision, precision)


def precision_plugins(precision: Precision) -> list[DoublePrecision]:
    """Make what Lightning's trainer needs beside the name."""
    return [StreamDoublePrecision()] if precision == "64-true" else []


@contextmanager
def kept_arithmetic(precision: Precision) -> Iterator[None]:
    """Let float32 products use TF32 for a while, if asked for.

    What a trainer with ``deterministic`` sets for the whole process is put back as well.
    """
    products = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
