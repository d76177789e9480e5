"""A training step replayed from CUDA graphs: the host launches two things."""

from manystream.graphs.step import GraphedStep

__all__ = ["GraphedStep"]
