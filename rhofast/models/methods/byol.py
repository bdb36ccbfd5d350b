"""rho-BYOL (arXiv 2006.07733; for video 2104.14558, section 3.1): predict the embedding of another clip.

    query_i = normalize(predict(project(backbone(clip_i))))        trained
    key_j   = normalize(project'(backbone'(clip_j)))               momentum network (moving average); no gradient
    loss_i  = mean over j != i, and over videos, of -query_i . key_j / T

There are no negatives. The momentum network is updated at the start of a step, before the keys are made. The released
code sums the losses of the rho queries; the paper averages them (option `loss`). The loss is a mean over videos, so
without batch norm the gradients of micro-batches add up to those of the batch.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rhofast.config.section import Count, Positive, Section
from rhofast.models.batch_norm import synchronize_batch_norm
from rhofast.models.methods.heads import MLP, build_projector, embedding_spread, normalize
from rhofast.models.methods.momentum import MomentumMethod


class BYOLConfig(Section):
    """Options of BYOL. The defaults are those of the released configuration."""

    hidden: Count = 4096
    """Width of the hidden layers of projector and predictor."""

    out: Count = 256
    """Dimension of the embeddings."""

    projector_layers: Count = 2
    """Number of linear layers of the projector."""

    predictor_layers: Count = 2
    """Number of linear layers of the predictor."""

    predictor_hidden: Count | None = None
    """Width of the predictor's hidden layers. None: `hidden`."""

    projector_norm: bool = True
    """Whether the projector has batch norm. The paper's ablation removes it."""

    predictor_norm: bool = True
    """Whether the predictor has batch norm. The paper's ablation removes it."""

    temperature: Positive = 0.5
    """Temperature T: the loss is -cosine / T, so T only scales it."""

    ema_base: Annotated[float, Field(ge=0, le=1)] = 0.996
    """Momentum of the moving average at the start of the run."""

    ema_anneal: bool = True
    """Whether the momentum rises to 1 along a cosine over the run. False: it stays at `ema_base`."""

    loss: Literal["sum", "mean"] = "sum"
    """How the losses of the rho queries are combined: "sum" (released code) or "mean" (paper)."""

    sequential: bool = True
    """Whether clips are queries one at a time, each with its own backward pass, so that memory holds the activations
    of one clip. False: all queries share one backward pass, the keys are made in one batch, and the momentum is
    annealed before its use (the released code allows this for two clips only)."""

    batch_norm: Literal["node", "sync", "local"] = "node"
    """Ranks over which batch norm takes its statistics: those of each machine ("node", released code: 8 GPUs), all
    ("sync"), or each rank alone ("local")."""


class BYOL(MomentumMethod):
    """rho-BYOL around a backbone; the module's docstring has its loss.

    Args:
        backbone: the backbone to train.
        options: the options of the method.
    """

    def __init__(self, backbone: nn.Module, options: BYOLConfig) -> None:
        projector = build_projector(backbone, options)
        base, anneal = options.ema_base, options.ema_anneal
        super().__init__(backbone, projector, base=base, anneal=anneal, use_previous=options.sequential)
        self.options = options
        self.predictor = MLP(
            options.out,
            options.predictor_hidden or options.hidden,
            options.out,
            layers=options.predictor_layers,
            batch_norm=options.predictor_norm,
        )
        synchronize_batch_norm(self, options.batch_norm)
        self._keys: Tensor | None = None  # [P, B, D], kept from the first pass to the last

    def num_passes(self, num_clips: int) -> int:
        """Return one pass per query clip, or a single one."""
        if num_clips < 2:
            raise ValueError(f"BYOL needs at least 2 clips per video (got {num_clips}).")
        return num_clips if self.options.sequential else 1

    def forward(self, pixels: Tensor, pass_index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one query clip, or of all of them; see Method."""
        clips = pixels.unbind(dim=1)
        if pass_index == 0:
            self._keys = self._make_keys(clips)
        assert self._keys is not None, "passes must come in order, from 0"
        losses = []
        for number in [pass_index] if self.options.sequential else range(len(clips)):
            embedding = self.projector(self.backbone(clips[number]))
            query = normalize(self.predictor(embedding))
            others = [key for other, key in enumerate(self._keys) if other != number]
            losses.append(torch.stack([-(query * key).sum(dim=-1).mean() for key in others]).mean())
        loss = torch.stack(losses).sum() / self.options.temperature
        if self.options.loss == "mean":
            loss = loss / len(clips)
        if pass_index == self.num_passes(len(clips)) - 1:
            self._keys = None
        return loss, {
            "feature_std": embedding_spread(embedding),
            "ema_momentum": self.get_buffer("momentum").detach().clone(),
        }

    @torch.no_grad()
    def _make_keys(self, clips: tuple[Tensor, ...]) -> Tensor:
        """Return the momentum network's embedding of every clip, [P, B, D] with unit rows."""
        if self.options.sequential:
            return torch.stack([normalize(self.momentum_projector(self.momentum_backbone(clip))) for clip in clips])
        joint = normalize(self.momentum_projector(self.momentum_backbone(torch.cat(clips))))
        return torch.stack(joint.chunk(len(clips)))
