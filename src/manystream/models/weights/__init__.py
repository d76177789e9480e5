"""Weights in files: our model files, the original implementation's, and ordinary ResNets'."""

from manystream.models.weights.original import load_original, read_original
from manystream.models.weights.pretrained import PretrainedReport, load_pretrained_stream

__all__ = ["PretrainedReport", "load_original", "load_pretrained_stream", "read_original"]
