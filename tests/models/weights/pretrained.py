"""A pretrained ResNet-18, narrow, and models of its width to load it into."""

import torch
from torch import Tensor

from manystream import create_model
from manystream.models import StreamResNet
from tests.models.plain_resnet import plain_resnet

RESNET18_CONVOLUTIONS = """
conv1
layer1.0.conv1 layer1.0.conv2 layer1.1.conv1 layer1.1.conv2
layer2.0.conv1 layer2.0.conv2 layer2.0.downsample.0 layer2.1.conv1 layer2.1.conv2
layer3.0.conv1 layer3.0.conv2 layer3.0.downsample.0 layer3.1.conv1 layer3.1.conv2
layer4.0.conv1 layer4.0.conv2 layer4.0.downsample.0 layer4.1.conv1 layer4.1.conv2
"""

RESNET18_NORMS = """
bn1
layer1.0.bn1 layer1.0.bn2 layer1.1.bn1 layer1.1.bn2
layer2.0.bn1 layer2.0.bn2 layer2.0.downsample.1 layer2.1.bn1 layer2.1.bn2
layer3.0.bn1 layer3.0.bn2 layer3.0.downsample.1 layer3.1.bn1 layer3.1.bn2
layer4.0.bn1 layer4.0.bn2 layer4.0.downsample.1 layer4.1.bn1 layer4.1.bn2
"""

OF_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

RESNET18 = {
    *(f"{name}.weight" for name in RESNET18_CONVOLUTIONS.split()),
    *(f"{name}.{tensor}" for name in RESNET18_NORMS.split() for tensor in OF_NORM),
    "fc.weight",
    "fc.bias",
}
"""The state dict of torchvision's resnet18."""

LAYERS = (2, 2, 2, 2)
WIDTH = 1 / 16
SMALL_WIDTHS = (4, 8, 16, 32)


def resnet18(in_channels: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A narrow ResNet-18's state dict, in which each counter stands elsewhere."""
    model = plain_resnet(
        in_channels, layers=LAYERS, widths=SMALL_WIDTHS, num_classes=1000, dtype=dtype
    )
    state = model.state_dict()
    assert set(state) == RESNET18
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    return {**state, **{key: torch.tensor(100 + i) for i, key in enumerate(counters)}}


def narrow_model(family: str = "li_net3") -> StreamResNet:
    return create_model(family, streams={"rgb": 3, "depth": 1}, num_classes=5, width=WIDTH).network


def snapshot(model: StreamResNet) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def assert_only_changed(model: StreamResNet, before: dict[str, Tensor], part: str = "") -> None:
    """Bitwise; whatever has ``part`` in its name may have changed."""
    for key, tensor in model.state_dict().items():
        if not part or part not in key:
            assert torch.equal(tensor, before[key]), key
