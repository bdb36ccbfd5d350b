"""rho-LeJEPA (arXiv 2511.08544, through time): pull the clips of a video to their mean; keep all of them Gaussian.

    z_i        = project(backbone(clip_i))                         not normalized
    invariance = mean over clips, videos and dimensions of (z_i - mean of the video's clips)^2
    sigreg     = how far the distribution of z_i over videos is from an isotropic Gaussian, a mean over clips
    loss       = (1 - w) * invariance + w * sigreg

The gradient goes through the mean as well. There is no momentum network, queue, predictor or stop-gradient: embeddings
cannot collapse, because one point is not Gaussian. w is `sigreg_weight`. All clips are of one size.

SIGReg (sketched isotropic Gaussian regularization) projects the embeddings on random unit directions and compares, for
each direction, the empirical characteristic function with that of a standard Gaussian:

    error(t)  = (mean of cos(t x) - e^(-t^2 / 2))^2 + (mean of sin(t x))^2         means over the videos of all ranks
    statistic = N * integral over t from -limit to limit of error(t) e^(-t^2 / 2)  by the trapezoidal rule

The directions are a function of the seed and the step alone: they are the same on all ranks and after a resume. The
loss needs the whole batch, so a step cannot be split into micro-batches.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from rhofast.config.section import Count, Positive, Section
from rhofast.distributed.collectives import all_reduce
from rhofast.distributed.process_group import world_size
from rhofast.models.batch_norm import synchronize_batch_norm
from rhofast.models.methods.heads import build_projector, embedding_scale, embedding_spread, full_precision
from rhofast.models.methods.method import Method, TrainingProgress


class LeJEPAConfig(Section):
    """Options of LeJEPA. The defaults of the loss are those of the paper."""

    hidden: Count = 2048
    """Width of the projector's hidden layers."""

    out: Count = 128
    """Dimension of the embeddings."""

    projector_layers: Count = 3
    """Number of linear layers of the projector."""

    projector_norm: bool = True
    """Whether the projector has batch norm."""

    sigreg_weight: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Weight of SIGReg; that of the invariance is the rest to 1 (paper: 0.01 to 0.1)."""

    directions: Count = 1024
    """Number of random directions, drawn anew in every step."""

    knots: Annotated[int, Field(ge=2)] = 17
    """Number of frequencies t in [0, `limit`] at which characteristic functions are compared."""

    limit: Positive = 3.0
    """Highest frequency t."""

    batch_norm: Literal["node", "sync", "local"] = "sync"
    """Ranks over which batch norm takes its statistics: all ("sync"), those of each machine ("node"), or each rank
    alone ("local")."""


class LeJEPA(Method):
    """rho-LeJEPA around a backbone; the module's docstring has its loss.

    Args:
        backbone: the backbone to train.
        options: the options of the method.
    """

    coupling = "LeJEPA compares the distribution of the embeddings over all videos of a batch with a Gaussian"

    def __init__(self, backbone: nn.Module, options: LeJEPAConfig) -> None:
        super().__init__()
        self.options = options
        self.backbone = backbone
        self.projector = build_projector(backbone, options)
        synchronize_batch_norm(self, options.batch_norm)
        self._progress = TrainingProgress(step=0, epoch=0.0, epochs=1.0)  # of the current step

    def num_passes(self, num_clips: int) -> int:
        """Return a single pass: the mean of a video's clips needs all of them."""
        if num_clips < 2:
            raise ValueError(f"LeJEPA needs at least 2 clips per video (got {num_clips}).")
        return 1

    def check(self, num_clips: int, batch_size: int) -> None:
        """Refuse a batch that has no distribution; see Method."""
        super().check(num_clips, batch_size)
        if batch_size < 2:
            raise ValueError(f"train.batch_size={batch_size} has no distribution: LeJEPA needs at least 2 videos.")

    def begin_step(self, progress: TrainingProgress) -> None:
        """Note the step, whose directions are drawn; see Method."""
        self._progress = progress

    def forward(self, pixels: Tensor, pass_index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of all clips; see Method."""
        options, progress = self.options, self._progress
        # One forward pass per clip, so that batch norm never mixes clip positions.
        z = torch.stack([self.projector(self.backbone(clip)) for clip in pixels.unbind(dim=1)])  # [P, B, D]
        with full_precision(z):
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            invariance = (z - z.mean(dim=0)).square().mean()
            directions = random_directions(options.out, options.directions, seed=progress.seed, step=progress.step)
            directions = directions.to(z.device, z.dtype, non_blocking=True)
            gaussian = sigreg(z, directions, knots=options.knots, limit=options.limit)
            loss = torch.lerp(invariance, gaussian, options.sigreg_weight)
        return loss, {
            # Embeddings that shrink to zero may still point everywhere.
            "feature_std": torch.minimum(embedding_spread(z[0]), embedding_scale(z[0])),
            "invariance_loss": invariance.detach(),
            "sigreg_loss": gaussian.detach(),
        }


def random_directions(dimensions: int, count: int, *, seed: int, step: int) -> Tensor:
    """Draw unit vectors that depend on the arguments alone.

    They are drawn on the host, because a GPU's numbers differ between models of GPUs.

    Args:
        dimensions: number of dimensions D.
        count: number of vectors.
        seed: seed of the run.
        step: number of the step.

    Returns:
        f32[D, count] on the CPU, with columns of unit length.
    """
    number = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    generator = torch.Generator().manual_seed(number)
    drawn = torch.randn(dimensions, count, generator=generator, device="cpu")
    return drawn.div_(drawn.norm(dim=0))


def sigreg(z: Tensor, directions: Tensor, *, knots: int, limit: float) -> Tensor:
    """Measure how far embeddings are from an isotropic standard Gaussian; a collective operation.

    Args:
        z: [P, B, D], P clips of this rank's B videos. B is the same on all ranks.
        directions: [D, M] with columns of unit length, the same on all ranks.
        knots: number of frequencies in [0, `limit`].
        limit: highest frequency.

    Returns:
        The statistic of all ranks' videos, a scalar: its mean over clips and directions.
    """
    videos = z.shape[1] * world_size()
    t = torch.linspace(0, limit, knots, dtype=z.dtype, device=z.device)
    gaussian = torch.exp(-t.square() / 2)
    weights = torch.full_like(t, 2 * limit / (knots - 1))  # the error is even in t: twice the integral from 0
    weights[0] /= 2
    weights[-1] /= 2
    angles = (z @ directions).unsqueeze(-1) * t  # [P, B, M, knots]
    means = all_reduce(torch.stack([angles.cos().sum(dim=1), angles.sin().sum(dim=1)])) / videos  # [2, P, M, knots]
    error = (means[0] - gaussian).square() + means[1].square()
    statistic: Tensor = videos * (error @ (weights * gaussian)).mean()
    return statistic
