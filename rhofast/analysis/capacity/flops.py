"""Count what one training step costs: operations, gradient bytes, checkpoint bytes.

The backbone runs once on torch's meta device, which computes shapes alone. The method runs once around a stand-in that
counts how many clips a backbone processes with and without gradients.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rhofast.config.schema import Config
from rhofast.models.backbones import build_backbone
from rhofast.models.methods import build_method
from rhofast.models.methods.method import TrainingProgress
from rhofast.storage.user_code import failures_of, is_reference
from rhofast.training.step import forward_backward

_VIDEOS = 2  # in the batch of the stand-in: the minimum for batch norm
_CLIPS = 2  # of a forward pass that is counted: the minimum for batch norm, too
_BACKWARD = 2  # a backward pass costs two forward passes: gradients of weights and of activations


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The cost of one step. A multiply-add is two operations.

    Attributes:
        clips: Clips per video.
        flops: Operations per video: all forward and backward passes of backbones and heads. Only convolutions and
            matrix products count, as usual.
        forward_flops: Operations of one forward pass of the backbone on one clip, without gradients.
        num_features: Numbers of a feature.
        gradient_bytes: Bytes of all trained parameters in float32, which ranks exchange per step.
        checkpoint_bytes: Bytes of the method's parameters and buffers and of the optimizer state.
    """

    clips: int
    flops: float
    forward_flops: float
    num_features: int
    gradient_bytes: int
    checkpoint_bytes: int


def count_workload(config: Config, clips: int) -> Workload:
    """Count the cost of a training step.

    Args:
        config: Configuration of the run.
        clips: Clips per video.

    Returns:
        The cost.

    Raises:
        ConfigError: If the backbone cannot take the clips of the configuration, or a method of the user's own asks its
            backbone for more than features.
        ValueError: If the method cannot use this number of clips.
    """
    section, frames, size = config.backbone, config.clips.num_frames, config.augment.size
    # Code of the user's own may look at values, which needs a device that has them.
    with contextlib.nullcontext() if is_reference(section.name) else torch.device("meta"):
        backbone = build_backbone(section.name, section.options, num_frames=frames, size=size)
    # A backbone may do less in passes that make gradients: `keep` of a ViT leaves tokens out there.
    own = failures_of(f"backbone.name={section.name}") if is_reference(section.name) else contextlib.nullcontext()
    with own:
        forward = {trained: _forward_flops(backbone, frames, size, trained=trained) for trained in (False, True)}
        backbone.to("meta")
    with torch.device("meta"):
        method = build_method(config.method.name, config.method.options, backbone)
    passes, heads = _count_passes(config, clips, backbone)
    trained = sum(tensor.numel() * tensor.element_size() for tensor in method.parameters() if tensor.requires_grad)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in method.state_dict().values())
    slots = 2 if config.optim.name == "adamw" else 1
    return Workload(
        clips=clips,
        flops=heads + forward[False] * passes[False] + forward[True] * (1 + _BACKWARD) * passes[True],
        forward_flops=forward[False],
        num_features=int(backbone.num_features),  # type: ignore[arg-type]
        gradient_bytes=trained,
        checkpoint_bytes=stored + slots * trained,
    )


def _forward_flops(backbone: nn.Module, frames: int, size: int, *, trained: bool) -> int:
    """Return the operations of a forward pass of one clip, with or without gradients.

    Two clips are what batch norm needs. They run on the meta device if the backbone can.
    """
    shape = (_CLIPS, 3, frames, size, size)
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(trained):
        try:
            with torch.device("meta"), FlopCounterMode(display=False) as counter:
                copy.deepcopy(backbone).to("meta")(torch.empty(shape))
        except Exception:
            if any(tensor.is_meta for tensor in backbone.parameters()):
                raise
            with FlopCounterMode(display=False) as counter:
                copy.deepcopy(backbone)(torch.zeros(shape))
    return int(counter.get_total_flops()) // _CLIPS


def _count_passes(config: Config, clips: int, backbone: nn.Module) -> tuple[dict[bool, float], float]:
    """Count the clips per video that pass through a backbone, and the operations of the heads.

    Args:
        config: Configuration of the run.
        clips: Clips per video.
        backbone: The backbone, on the meta device.

    Returns:
        (clips per video, by whether gradients are needed; operations of the heads per video).
    """
    seen: Counter[bool] = Counter()

    class StandIn(nn.Module):
        """A module as wide as the backbone. `seen` is shared, so that its copies are counted too."""

        def __init__(self) -> None:
            super().__init__()
            self.num_features = backbone.num_features
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, clip: Tensor) -> Tensor:
            seen[torch.is_grad_enabled()] += len(clip)
            return torch.randn(len(clip), int(self.num_features)) * self.weight  # type: ignore[arg-type]

    name = config.method.name
    failures = failures_of(f"method.name={name}, around a stand-in for the backbone that has no layers")
    with torch.random.fork_rng(devices=[]), failures if is_reference(name) else contextlib.nullcontext():
        method = build_method(name, config.method.options, StandIn())
        with FlopCounterMode(display=False) as counter:
            forward_backward(
                method,
                method,
                torch.zeros(_VIDEOS, clips, 3, 1, 1, 1),
                TrainingProgress(step=10**9, epoch=0.5, epochs=1.0),
            )
    return {wanted: seen[wanted] / _VIDEOS for wanted in (False, True)}, counter.get_total_flops() / _VIDEOS
