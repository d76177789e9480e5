"""Data sets written once as arrays that are mapped into memory: no decoding in training."""

from manystream.data.prepared.layout import is_prepared
from manystream.data.prepared.reader import prepared
from manystream.data.prepared.writer import prepare_split

__all__ = ["is_prepared", "prepare_split", "prepared"]
