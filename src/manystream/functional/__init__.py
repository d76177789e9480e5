"""Pure tensor operations with their own backward; they know nothing of presence, only rows."""

from manystream.functional.integrate import linear_integrate, scalar_integrate

__all__ = ["linear_integrate", "scalar_integrate"]
