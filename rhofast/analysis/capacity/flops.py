"""What one training step of a configuration asks of a machine: operations, gradients, a checkpoint's bytes.

Nothing is trained and hardly anything computed: shapes of the network go through it on torch's meta device, and the
method runs once around a stand-in that counts how often, and with or without gradients, a backbone is asked. What it
is not: it knows no machine and no time (capacity.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rhofast.config.schema import Config
from rhofast.models.backbones import build_backbone
from rhofast.models.methods import build_method
from rhofast.models.methods.method import TrainingProgress
from rhofast.training.step import forward_backward

_VIDEOS = 2  # of the batch that goes around the stand-in: the fewest that batch norm takes
_BACKWARD = 2  # a backward costs two forwards: gradients of weights, and of activations


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One step, counted for one video of the batch. A multiply-add is two operations.

    clips             that the method gets of a video
    flops             operations for a video: all forwards and backwards of backbones and heads; convolutions and matrix
                      products alone, as everybody counts them
    gradient_bytes    of all trained parameters, float32: what ranks exchange in a step
    checkpoint_bytes  the method's parameters and buffers, and the optimizer's state
    """

    clips: int
    flops: float
    gradient_bytes: int
    checkpoint_bytes: int


def count_workload(config: Config, clips: int) -> Workload:
    """Count a step of `config` that gets `clips` clips a video. Raises ConfigError for a network that does not take the
    run's clips; ValueError for a number of clips that the method cannot use."""
    backbone_section, frames, size = config.backbone, config.clips.num_frames, config.augment.size
    with torch.device("meta"):
        backbone = build_backbone(backbone_section.name, backbone_section.options, num_frames=frames, size=size)
        method = build_method(config.method.name, config.method.options, backbone)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            backbone(torch.empty(1, 3, frames, size, size))
    forward = counter.get_total_flops()
    passes, heads = _count_passes(config, clips, backbone)
    trained = sum(one.numel() * one.element_size() for one in method.parameters() if one.requires_grad)
    stored = sum(one.numel() * one.element_size() for one in method.state_dict().values())
    slots = 2 if config.optim.name == "adamw" else 1
    return Workload(
        clips=clips,
        flops=heads + forward * (passes[False] + (1 + _BACKWARD) * passes[True]),
        gradient_bytes=trained,
        checkpoint_bytes=stored + slots * trained,
    )


def _count_passes(config: Config, clips: int, backbone: nn.Module) -> tuple[dict[bool, float], float]:
    """(clips of a video that a backbone sees, by whether gradients are wanted; operations of the heads a video)."""
    seen: Counter[bool] = Counter()

    class StandIn(nn.Module):
        """As wide as the backbone. `seen` is not its own, so that its copies count, too."""

        def __init__(self) -> None:
            super().__init__()
            self.num_features = backbone.num_features
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, clip: Tensor) -> Tensor:
            seen[torch.is_grad_enabled()] += len(clip)
            return torch.randn(len(clip), int(self.num_features)) * self.weight  # type: ignore[arg-type]

    with torch.random.fork_rng(devices=[]):
        method = build_method(config.method.name, config.method.options, StandIn())
        with FlopCounterMode(display=False) as counter:
            forward_backward(
                method,
                method,
                torch.zeros(_VIDEOS, clips, 3, 1, 1, 1),
                TrainingProgress(step=10**9, epoch=0.5, epochs=1.0),
            )
    return {wanted: seen[wanted] / _VIDEOS for wanted in (False, True)}, counter.get_total_flops() / _VIDEOS
