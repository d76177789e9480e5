"""Arithmetic of a run, and how it is put back after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.plugins import DoublePrecision
from torch import Tensor

from manystream.batch import StreamBatch
from manystream.training.options import Precision


class StreamDoublePrecision(DoublePrecision):
    """Lightning's 64-true, which looks for floating point in anything but a frozen dataclass."""

    def convert_input(self, data: Any) -> Any:
        """A batch in double precision."""
        if isinstance(data, StreamBatch):
            return data.map(Tensor.double)
        return super().convert_input(data)


def lightning_precision(precision: Precision) -> str | None:
    """Name that Lightning has for it; None for 64-true, whose plugin is given to it instead.

    TF32 is float32 to everyone but the matrix product.
    """
    return {"tf32": "32-true", "64-true": None}.get(precision, precision)


def precision_plugins(precision: Precision) -> list[DoublePrecision]:
    """What Lightning's trainer needs beside the name."""
    return [StreamDoublePrecision()] if precision == "64-true" else []


@contextmanager
def kept_arithmetic(precision: Precision) -> Iterator[None]:
    """For a while, let float32 products use TF32 if asked for.

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
