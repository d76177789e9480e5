"""Pure tensor operations with their own backward; of presence they know runs of rows alone."""

from manystream.functional._norm import After, Pool
from manystream.functional.integrate import linear_integrate, scalar_integrate
from manystream.functional.norm_act import (
    BatchNormRows,
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
