"""Residual networks of the sizes of ResNet-18 and ResNet-50, in plain torch.nn."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Convolutions with batch normalisation, and the way around them."""

    def __init__(self, layers: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for layer in layers:
            steps += [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU()]
        self.body = nn.Sequential(*steps[:-1])
        before, after = layers[0].in_channels, layers[-1].out_channels
        stride = max(layer.stride[0] for layer in layers)
        self.around: nn.Module = nn.Identity()
        if before != after or stride != 1:
            self.around = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C_out, H / stride, W / stride)."""
        return torch.relu(self.body(input) + self.around(input))


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)


def resnet(blocks: Sequence[int], bottleneck: bool, width: int = 64, classes: int = 1000) -> nn.Sequential:
    """A residual network for images (N, 3, H, W).

    Args:
        blocks: How many in each stage; from one stage to the next the channels double and the sizes are halved.
        bottleneck: Whether a block is 1x1, 3x3, 1x1 with four times the channels outside, or two of 3x3.
        width: Channels of the first stage.
        classes: Of the result, (N, classes).
    """
    stages: list[nn.Module] = []
    before = width
    for stage, count in enumerate(blocks):
        channels = width << stage
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            if bottleneck:
                after = 4 * channels
                layers = [
                    _convolution(before, channels, 1),
                    _convolution(channels, channels, 3, stride),
                    _convolution(channels, after, 1),
                ]
            else:
                after = channels
                layers = [_convolution(before, channels, 3, stride), _convolution(channels, channels, 3)]
            stages.append(Block(layers))
            before = after
    stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def resnet18(width: int = 64) -> nn.Sequential:
    """18 layers with weights, 11.7 million of them at the usual width."""
    return resnet((2, 2, 2, 2), bottleneck=False, width=width)


def resnet50(width: int = 64) -> nn.Sequential:
    """50 layers with weights, 25.6 million of them at the usual width."""
    return resnet((3, 4, 6, 3), bottleneck=True, width=width)
