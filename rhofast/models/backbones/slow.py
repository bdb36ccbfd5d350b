"""The "slow" single-pathway 3D ResNet (SlowFast's slow branch; arXiv 1812.03982, as used in 2104.14558).

    stem   1x7x7 / 2, BN, ReLU, max-pool 1x3x3 / 2          64 x T x H/4  x W/4
    0      blocks of 64 inner channels                     256 x T x H/4  x W/4
    1      128, stride 2                                   512 x T x H/8  x W/8
    2      256, stride 2, temporal kernel 3               1024 x T x H/16 x W/16
    3      512, stride 2, temporal kernel 3               2048 x T x H/32 x W/32       then the mean over T, H, W

The table shows Slow-R50. Time is never strided, so one set of weights accepts any T and tau. A bottleneck has
convolutions of kt x 1 x 1, 1 x 3 x 3 (with the stride) and 1 x 1 x 1; a basic block has kt x 3 x 3 (with the stride)
and 1 x 3 x 3. The shortcut has a projection where channels or stride change. The network has no classifier.

For detection the last stage keeps its resolution, 1/16: `last_stride` = 1, and `last_dilation` = 2 spreads its 3 x 3
convolutions, so that each sees as much of the picture as before. No weight changes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from rhofast.config.section import Count, Section
from rhofast.models.backbones.max_pool import max_pool
from rhofast.models.backbones.pooled_maps import PooledMaps, block_names

# Number of blocks of each stage.
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

# The backbones by name, as options that differ from the defaults of SlowConfig.
VARIANTS: dict[str, dict[str, Any]] = {
    "slow_r18": {"depth": 18, "block": "basic"},
    "slow_r18_reference": {"depth": 18, "block": "basic", "wide_basic": True, "width": 16},
    "slow_r50": {"depth": 50},
    "slow_r101": {"depth": 101},
}

# Options that no weight depends on: trained weights fit every value of them.
SLOW_TRAINING_OPTIONS = ("last_stride", "last_dilation")

# The entries of a batch norm in a state dict.
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

Four = Annotated[tuple[Count, Count, Count, Count], Field(strict=False)]


class SlowConfig(Section):
    """Options of a Slow network. The defaults are those of Slow-R50."""

    depth: Literal[18, 34, 50, 101] = 50
    """Depth of the ResNet: 18, 34, 50 or 101."""

    block: Literal["bottleneck", "basic"] = "bottleneck"
    """Kind of the residual blocks: "bottleneck" or "basic"."""

    width: Count = 64
    """Number of channels of the stem. Stage i has width * 2^i inner channels, and a bottleneck four times as many
    outputs."""

    wide_basic: bool = False
    """Whether basic blocks have 4 * width * 2^i outputs too, as the reference implementation defines them."""

    temporal_kernels: Four = (1, 1, 3, 3)
    """Temporal kernel size of each of the four stages; odd numbers."""

    temporal_blocks: Four = (3, 4, 6, 3)
    """Number of blocks of each stage, counted from its first, that have the temporal kernel; the others have 1. The
    reference implementation uses [3, 4, 6, 3], that is, the first 6 of the 23 blocks of Slow-R101's third stage."""

    zero_init: bool = False
    """Whether each residual branch starts at 0 (its last batch norm's weight)."""

    last_stride: Literal[1, 2] = 2
    """Spatial stride of the last stage: 2, or 1 for detection, which needs finer maps."""

    last_dilation: Literal[1, 2] = 1
    """Spatial dilation of the 3x3 convolutions of the last stage: 1, or 2 for detection, together with
    `last_stride` = 1."""

    @model_validator(mode="after")
    def _odd_kernels(self) -> SlowConfig:
        if any(kernel % 2 == 0 for kernel in self.temporal_kernels):
            raise ValueError(f"backbone.temporal_kernels={list(self.temporal_kernels)} must be odd numbers.")
        return self


class Block(nn.Module):
    """A residual block: [N, C_in, T, H, W] -> [N, C_out, T, H/stride, W/stride].

    Args:
        block: "bottleneck" or "basic".
        channels: number of input, inner and output channels.
        kernel: temporal size of the first convolution.
        stride: spatial stride.
        dilation: spatial dilation of the convolutions of 3 x 3.
        zero_init: whether the residual branch starts at 0.
    """

    def __init__(
        self,
        block: str,
        channels: tuple[int, int, int],
        kernel: int,
        stride: int,
        *,
        zero_init: bool,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv_c: nn.Conv3d | None = None
        self.bn_c: nn.BatchNorm3d | None = None
        self.shortcut: nn.Conv3d | None = None
        self.shortcut_bn: nn.BatchNorm3d | None = None
        wide, inner, out = channels
        if block == "bottleneck":
            self.conv_a, self.bn_a = _conv(wide, inner, (kernel, 1, 1)), nn.BatchNorm3d(inner)
            self.conv_b, self.bn_b = _conv(inner, inner, (1, 3, 3), stride, dilation), nn.BatchNorm3d(inner)
            self.conv_c, self.bn_c = _conv(inner, out, (1, 1, 1)), nn.BatchNorm3d(out)
            last = self.bn_c
        else:
            self.conv_a, self.bn_a = _conv(wide, out, (kernel, 3, 3), stride, dilation), nn.BatchNorm3d(out)
            self.conv_b, self.bn_b = _conv(out, out, (1, 3, 3), 1, dilation), nn.BatchNorm3d(out)
            last = self.bn_b
        if wide != out or stride != 1:
            self.shortcut, self.shortcut_bn = _conv(wide, out, (1, 1, 1), stride), nn.BatchNorm3d(out)
        if zero_init:
            nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [N, C_out, T, H/stride, W/stride]."""
        out = self.bn_b(self.conv_b(F.relu(self.bn_a(self.conv_a(x)), inplace=True)))
        if self.conv_c is not None and self.bn_c is not None:
            out = self.bn_c(self.conv_c(F.relu(out, inplace=True)))
        if self.shortcut is not None and self.shortcut_bn is not None:
            x = self.shortcut_bn(self.shortcut(x))
        return F.relu(out.add_(x), inplace=True)  # in place: batch norm saves its input, not its output


class Slow(PooledMaps):
    """The Slow network: [N, 3, T, H, W] normalized pixels -> [N, num_features]."""

    def __init__(self, options: SlowConfig) -> None:
        super().__init__()
        self.options = options
        width, expansion = options.width, 4 if options.block == "bottleneck" or options.wide_basic else 1
        self.stem = _conv(3, width, (1, 7, 7), stride=2)
        self.stem_bn = nn.BatchNorm3d(width)
        stages, wide = [], width
        for stage, count in enumerate(DEPTHS[options.depth]):
            inner = width * 2**stage
            blocks = []
            for number in range(count):
                kernel = options.temporal_kernels[stage] if number < options.temporal_blocks[stage] else 1
                stride = (1, 2, 2, options.last_stride)[stage] if number == 0 else 1
                channels, dilation = (wide, inner, inner * expansion), options.last_dilation if stage == 3 else 1
                blocks.append(
                    Block(options.block, channels, kernel, stride, zero_init=options.zero_init, dilation=dilation)
                )
                wide = inner * expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.num_features, self.map_stride = wide, 16 * options.last_stride

    def layers(self) -> list[tuple[str, ...]]:
        """Return the names of the stem, then those of each block."""
        return [("stem", "stem_bn"), *block_names(self.stages)]

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of the stem (after pooling) and of the four stages, each [N, C, T, H', W']."""
        x = F.relu(self.stem_bn(self.stem(x)), inplace=True)
        maps = [max_pool(x, (1, 3), (1, 2))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


def slow_keys(backbone: Slow) -> dict[str, str]:
    """Map PySlowFast's names (without `backbone.`) to ours, for every entry of a Slow network's state dict."""
    pairs = {"s1.pathway0_stem.conv.weight": "stem.weight"}
    pairs |= {f"s1.pathway0_stem.bn.{part}": f"stem_bn.{part}" for part in _NORM}
    for stage, blocks in enumerate(backbone.stages):
        assert isinstance(blocks, nn.Sequential)
        for number, block in enumerate(blocks):
            official, here = f"s{stage + 2}.pathway0_res{number}", f"stages.{stage}.{number}"
            for letter in "abc":
                if getattr(block, f"conv_{letter}", None) is not None:
                    pairs[f"{official}.branch2.{letter}.weight"] = f"{here}.conv_{letter}.weight"
                    for part in _NORM:
                        pairs[f"{official}.branch2.{letter}_bn.{part}"] = f"{here}.bn_{letter}.{part}"
            if block.shortcut is not None:
                pairs[f"{official}.branch1.weight"] = f"{here}.shortcut.weight"
                pairs |= {f"{official}.branch1_bn.{part}": f"{here}.shortcut_bn.{part}" for part in _NORM}
    return pairs


def _conv(wide: int, out: int, kernel: tuple[int, int, int], stride: int = 1, dilation: int = 1) -> nn.Conv3d:
    """Return a convolution whose padding keeps the size, apart from the stride; its strides are spatial."""
    padding = (kernel[0] // 2, kernel[1] // 2 * dilation, kernel[2] // 2 * dilation)
    strides, spread = (1, stride, stride), (1, dilation, dilation)
    conv = nn.Conv3d(wide, out, kernel, stride=strides, padding=padding, dilation=spread, bias=False)
    with torch.no_grad():
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
