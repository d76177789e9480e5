"""Networks: layers assembled, families told apart, weights named."""

from manystream.models.families import FAMILIES, Family
from manystream.models.inspection import contributions, mixing_weights
from manystream.models.memory_modes import MemoryMode, apply_memory_mode
from manystream.models.network import StreamNetwork
from manystream.models.original import load_original
from manystream.models.pretrained import PretrainedReport, load_pretrained_stream
from manystream.models.resnet import StreamResNet, resnet_size

__all__ = [
    "FAMILIES",
    "Family",
    "MemoryMode",
    "PretrainedReport",
    "StreamNetwork",
    "StreamResNet",
    "apply_memory_mode",
    "contributions",
    "load_original",
    "load_pretrained_stream",
    "mixing_weights",
    "resnet_size",
]
