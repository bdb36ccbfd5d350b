"""S3D and S3D-G: separable 3D Inception networks, without and with gates (arXiv 1712.04851).

    stem           7 x 7 / 2, then 7 frames / 2                                          64 x T/2 x H/2  x W/2
    max-pool       1x3x3 / 2
    conv_2b, 2c    1x1x1; 3 x 3, then 3 frames                                          192 x T/2 x H/4  x W/4
    max-pool       1x3x3 / 2
    stage 0        2 Inception blocks                                                   480 x T/2 x H/8  x W/8
    max-pool       3x3x3 / 2
    stage 1        5 Inception blocks                                                   832 x T/4 x H/16 x W/16
    max-pool       2x2x2 / 2
    stage 2        2 Inception blocks                                                  1024 x T/8 x H/32 x W/32
                                                                                       then the mean over T, H, W

Every convolution is followed by batch norm and ReLU. A separable one is a convolution over space and one over time. An
Inception block has four branches: 1x1x1; 1x1x1 and separable 3x3x3, twice; max-pool 3x3x3 and 1x1x1. S3D-G multiplies
the output of conv_2c and of each branch, channel by channel, with sigmoid(Linear(mean over T, H, W)), as the authors'
code does; their paper only says that gates follow convolutions over time.

torchvision averages over windows of 2x7x7 places before its classifier. That is the mean over all places where the last
map is no larger (16 frames of 224 x 224 pixels); with longer clips it gives the middle more weight, and this network
does not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhofast.config.section import Count, Section
from rhofast.models.backbones.clip_limits import ClipLimits
from rhofast.models.backbones.max_pool import max_pool
from rhofast.models.backbones.pooled_maps import PooledMaps, block_names

# Output channels of the blocks' convolutions, by stage: branch 0; branch 1, inner and outer; branch 2; branch 3.
_BLOCKS = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
_STEM = 64  # channels of the stem in this table
_EPSILON = 1e-3  # of batch norms, as in the authors' code and torchvision's weights
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class S3DConfig(Section):
    """Options of S3D and S3D-G."""

    gating: bool = False
    """Whether branches are multiplied with gates: S3D-G. "s3dg" sets it."""

    width: Count = _STEM
    """Number of channels of the stem. The other layers grow and shrink with it."""


class ConvNorm(nn.Module):
    """A convolution, batch norm and ReLU: [N, C_in, T, H, W] -> [N, C_out, T', H', W'].

    Args:
        wide: number of input channels.
        out: number of output channels.
        kernel: frames, height and width of the kernel; odd numbers, padded by half of them.
        stride: stride along the axes on which the kernel is larger than 1.
    """

    def __init__(self, wide: int, out: int, kernel: tuple[int, int, int] = (1, 1, 1), stride: int = 1) -> None:
        super().__init__()
        t, h, w = kernel
        steps = (stride if t > 1 else 1, stride if h > 1 else 1, stride if w > 1 else 1)
        padding = (t // 2, h // 2, w // 2)
        self.conv = nn.Conv3d(wide, out, kernel, stride=steps, padding=padding, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm3d(out, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, [N, C_out, T', H', W']."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


class SeparableConv(nn.Module):
    """A convolution over space and one over time, each with batch norm and ReLU.

    Args:
        wide: number of input channels.
        out: number of output channels.
        side: size of the kernel along each axis.
        stride: stride along each axis.
    """

    def __init__(self, wide: int, out: int, side: int, stride: int = 1) -> None:
        super().__init__()
        self.space = ConvNorm(wide, out, (1, side, side), stride)
        self.time = ConvNorm(out, out, (side, 1, 1), stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output: [N, C_in, T, H, W] -> [N, C_out, T', H', W']."""
        out: Tensor = self.time(self.space(x))
        return out


class Gate(nn.Module):
    """A gate for each channel: x times sigmoid(Linear(mean of x over T, H, W)).

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, T, H, W] to the same shape."""
        weights = torch.sigmoid(self.linear(x.mean(dim=(2, 3, 4))))
        return x * weights[:, :, None, None, None]


class Inception(nn.Module):
    """An Inception block: [N, C_in, T, H, W] -> [N, C_out, T, H, W].

    Args:
        wide: number of input channels.
        channels: output channels of its convolutions, as in the table above.
        gating: whether each branch has a gate.
    """

    def __init__(self, wide: int, channels: tuple[int, ...], *, gating: bool) -> None:
        super().__init__()
        first, inner_1, second, inner_2, third, fourth = channels
        self.branch_0 = ConvNorm(wide, first)
        self.branch_1 = nn.Sequential(ConvNorm(wide, inner_1), SeparableConv(inner_1, second, 3))
        self.branch_2 = nn.Sequential(ConvNorm(wide, inner_2), SeparableConv(inner_2, third, 3))
        self.branch_3 = ConvNorm(wide, fourth)
        outs = (first, second, third, fourth)
        self.gates = nn.ModuleList(Gate(out) for out in outs) if gating else None
        self.out = sum(outs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [N, C_out, T, H, W]."""
        pooled = max_pool(x, (3, 3), (1, 1))
        branches = [self.branch_0(x), self.branch_1(x), self.branch_2(x), self.branch_3(pooled)]
        if self.gates is not None:
            branches = [gate(branch) for gate, branch in zip(self.gates, branches, strict=True)]
        return torch.cat(branches, dim=1)


class S3D(PooledMaps):
    """S3D or S3D-G: [N, 3, T, H, W] normalized pixels -> [N, num_features].

    Args:
        options: options of the network.
    """

    def __init__(self, options: S3DConfig) -> None:
        super().__init__()
        self.options = options
        # With 5 frames the forward pass works, but the gradient of the convolution over 7 frames writes out of bounds
        # (torch 2.15, CPU).
        self.limits = ClipLimits(name="s3dg" if options.gating else "s3d", num_frames=6, size=17)

        def scaled(channels: int) -> int:
            return max(1, channels * options.width // _STEM)

        wide = scaled(192)
        self.stem = SeparableConv(3, options.width, 7, stride=2)
        self.conv_2b = ConvNorm(options.width, options.width)
        self.conv_2c = SeparableConv(options.width, wide, 3)
        self.gate_2c = Gate(wide) if options.gating else None
        self.stages = nn.ModuleList()
        for table in _BLOCKS:
            blocks = []
            for channels in table:
                blocks.append(Inception(wide, tuple(map(scaled, channels)), gating=options.gating))
                wide = blocks[-1].out
            self.stages.append(nn.Sequential(*blocks))
        self.num_features, self.map_stride = wide, 32

    def layers(self) -> list[tuple[str, ...]]:
        """Return the names of the three layers before the stages, then those of each Inception block."""
        gate = () if self.gate_2c is None else ("gate_2c",)
        return [("stem",), ("conv_2b",), ("conv_2c", *gate), *block_names(self.stages)]

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of conv_2c and of the three stages, each [N, C, T', H', W'], before they are pooled.

        Args:
            x: clips, [N, 3, T, H, W].

        Raises:
            ConfigError: for clips that are too short or too small.
        """
        self.limits.check(*x.shape[2:])
        x = self.conv_2c(self.conv_2b(max_pool(self.stem(x), (1, 3), (1, 2))))
        maps = [x if self.gate_2c is None else self.gate_2c(x)]
        pools = (((1, 3), (1, 2)), ((3, 3), (2, 2)), ((2, 2), (2, 2)))
        for stage, (kernel, stride) in zip(self.stages, pools, strict=True):
            maps.append(stage(max_pool(maps[-1], kernel, stride)))
        return maps


def torchvision_s3d_keys(backbone: S3D) -> dict[str, str]:
    """Map torchvision's names to ours, for every entry of the state dict of a network without gates."""
    layers = _separable("features.0", "stem") | {"features.2": "conv_2b"} | _separable("features.3", "conv_2c")
    number = 5
    for stage, blocks in enumerate(backbone.stages):
        assert isinstance(blocks, nn.Sequential)
        for block in range(len(blocks)):
            official, here = f"features.{number + block}", f"stages.{stage}.{block}"
            layers |= {f"{official}.branch0": f"{here}.branch_0", f"{official}.branch3.1": f"{here}.branch_3"}
            for branch in (1, 2):
                layers[f"{official}.branch{branch}.0"] = f"{here}.branch_{branch}.0"
                layers |= _separable(f"{official}.branch{branch}.1", f"{here}.branch_{branch}.1")
        number += len(blocks) + 1  # and the pooling behind them
    pairs = {f"{official}.0.weight": f"{here}.conv.weight" for official, here in layers.items()}
    for official, here in layers.items():
        pairs |= {f"{official}.1.{part}": f"{here}.norm.{part}" for part in _NORM}
    return pairs


def _separable(official: str, here: str) -> dict[str, str]:
    return {f"{official}.0": f"{here}.space", f"{official}.1": f"{here}.time"}
