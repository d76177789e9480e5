"""Pure tensor operations with their own backward; they know nothing of presence but runs of rows."""

from manystream.functional.integrate import linear_integrate, scalar_integrate
from manystream.functional.norm_act import (
    After,
    BatchNormRows,
    Pool,
    Running,
    batch_norm_act,
    batch_statistics,
    group_norm_act,
)

__all__ = [
    "After",
    "BatchNormRows",
    "Pool",
    "Running",
    "batch_norm_act",
    "batch_statistics",
    "group_norm_act",
    "linear_integrate",
    "scalar_integrate",
]
