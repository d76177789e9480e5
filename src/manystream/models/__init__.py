"""Networks: layers assembled, families told apart, weights named."""

from manystream.models.families import FAMILIES, Family
from manystream.models.network import StreamNetwork
from manystream.models.resnet import StreamResNet

__all__ = ["FAMILIES", "Family", "StreamNetwork", "StreamResNet"]
