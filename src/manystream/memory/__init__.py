"""What a network's training step keeps in memory; never needed to run one."""

from manystream.memory.counting import kept_bytes, peak_bytes
from manystream.memory.measure import MemoryReport, measure

__all__ = ["MemoryReport", "kept_bytes", "measure", "peak_bytes"]
