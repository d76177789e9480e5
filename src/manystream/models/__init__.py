"""Networks: layers assembled, families told apart, weights named."""

from manystream.models.baselines import Ensemble, FilledNetwork, mean_images
from manystream.models.families import FAMILIES, Family
from manystream.models.inspection import contributions, mixing_weights
from manystream.models.memory_modes import MemoryMode, apply_memory_mode
from manystream.models.network import StreamNetwork
from manystream.models.resnet import StreamResNet, resnet_size
from manystream.models.weights import PretrainedReport, load_original, load_pretrained_stream

__all__ = [
    "FAMILIES",
    "Ensemble",
    "Family",
    "FilledNetwork",
    "MemoryMode",
    "PretrainedReport",
    "StreamNetwork",
    "StreamResNet",
    "apply_memory_mode",
    "contributions",
    "load_original",
    "load_pretrained_stream",
    "mean_images",
    "mixing_weights",
    "resnet_size",
]
