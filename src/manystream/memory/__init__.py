"""What a network's training step keeps in memory; never needed to run one."""

from manystream.memory.measure import kept_bytes, peak_bytes

__all__ = ["kept_bytes", "peak_bytes"]
