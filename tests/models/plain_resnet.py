"""An ordinary ResNet (v1.5) in stock PyTorch with torchvision's names, without our layers."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.builders import randomise


class PlainBlock(nn.Module):
    def __init__(self, block: str, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width if block == "basic" else 4 * width
        if block == "basic":
            self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(width, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or in_channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class PlainResNet(nn.Module):
    def __init__(
        self,
        block: str,
        layers: Sequence[int],
        widths: Sequence[int],
        in_channels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        channels = widths[0]
        self.conv1 = nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        for stage, (depth, width) in enumerate(zip(layers, widths, strict=True), start=1):
            blocks = []
            for i in range(depth):
                blocks.append(PlainBlock(block, channels, width, 2 if stage > 1 and i == 0 else 1))
                channels = width if block == "basic" else 4 * width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """What each block gives, by name."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        maps = {}
        for stage in (1, 2, 3, 4):
            for i, block in enumerate(self.get_submodule(f"layer{stage}")):
                x = block(x)
                maps[f"layer{stage}.{i}"] = x
        return maps

    def features(self, x: Tensor) -> Tensor:
        """Pooled features, shape (B, C)."""
        return list(self.maps(x).values())[-1].mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def plain_resnet(
    in_channels: int,
    *,
    block: str = "basic",
    layers: Sequence[int] = (1, 1, 1, 1),
    widths: Sequence[int] = (3, 4, 5, 6),
    num_classes: int = 5,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> PlainResNet:
    """A plain ResNet with nothing at a special value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PlainResNet(block, layers, widths, in_channels, num_classes).to(dtype)
        randomise(model)
    return model
