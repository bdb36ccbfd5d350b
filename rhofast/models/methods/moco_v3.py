"""rho-MoCo v3 (arXiv 2104.02057, through time): find the other clip among the keys of the batch; there is no queue.

    query_i = normalize(predict(project(backbone(clip_i))))        trained
    key_j   = normalize(project'(backbone'(clip_j)))               momentum network (moving average); no gradient
    loss_i  = 2 T * mean over j != i, and over videos, of -log(e^(query_i . key_j / T) / sum_v e^(query_i . key_jv / T))

where v runs over the videos of the batch of *all* ranks, and key_jv is the key of clip j of video v. With two clips
this is the symmetric loss of the paper. The momentum network is updated at the start of a step, before the keys are
made. The loss needs the whole batch, so a step cannot be split into micro-batches.

A vision transformer trains more stably if its projection of patches stays at its initial weights: set
`backbone.freeze_patches`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rhofast.config.section import Count, Positive, Section
from rhofast.distributed.collectives import all_gather
from rhofast.distributed.process_group import rank
from rhofast.models.batch_norm import synchronize_batch_norm
from rhofast.models.methods.heads import MLP, build_projector, embedding_scale, embedding_spread, full_precision
from rhofast.models.methods.momentum import MomentumMethod


class MoCoV3Config(Section):
    """Options of MoCo v3. The defaults are those of the paper for vision transformers."""

    hidden: Count = 4096
    """Width of the hidden layers of projector and predictor."""

    out: Count = 256
    """Dimension of the embeddings."""

    projector_layers: Count = 3
    """Number of linear layers of the projector."""

    predictor_layers: Count = 2
    """Number of linear layers of the predictor."""

    projector_norm: bool = True
    """Whether the projector has batch norm."""

    predictor_norm: bool = True
    """Whether the predictor has batch norm."""

    output_norm: bool = True
    """Whether the heads that have batch norm end in one without scale and shift. False: in a linear layer."""

    temperature: Positive = 0.2
    """Temperature T of the similarities. The loss is multiplied by 2 T."""

    ema_base: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Momentum of the moving average at the start of the run."""

    ema_anneal: bool = True
    """Whether the momentum rises to 1 along a cosine over the run. False: it stays at `ema_base`."""

    loss: Literal["sum", "mean"] = "sum"
    """How the losses of the rho queries are combined: "sum" (paper, which has two clips) or "mean"."""

    sequential: bool = True
    """Whether clips are queries one at a time, each with its own backward pass, so that memory holds the activations
    of one clip. False: all queries share one backward pass. The gradients are the same."""

    batch_norm: Literal["node", "sync", "local"] = "sync"
    """Ranks over which batch norm takes its statistics: all ("sync", paper), those of each machine ("node"), or each
    rank alone ("local")."""


class MoCoV3(MomentumMethod):
    """rho-MoCo v3 around a backbone; the module's docstring has its loss.

    Args:
        backbone: the backbone to train.
        options: the options of the method.
    """

    coupling = "MoCo v3's negatives are the keys of all videos of a batch"

    def __init__(self, backbone: nn.Module, options: MoCoV3Config) -> None:
        projector = build_projector(backbone, options, output_norm=options.projector_norm and options.output_norm)
        super().__init__(backbone, projector, base=options.ema_base, anneal=options.ema_anneal, use_previous=False)
        self.options = options
        self._predictor_ends_in_norm = options.predictor_norm and options.output_norm
        self.predictor = MLP(
            options.out,
            options.hidden,
            options.out,
            layers=options.predictor_layers,
            batch_norm=options.predictor_norm,
            output_norm=self._predictor_ends_in_norm,
        )
        synchronize_batch_norm(self, options.batch_norm)
        self._keys: Tensor | None = None  # [P, N, D] of all ranks, kept from the first pass to the last

    def num_passes(self, num_clips: int) -> int:
        """Return one pass per query clip, or a single one."""
        if num_clips < 2:
            raise ValueError(f"MoCo v3 needs at least 2 clips per video (got {num_clips}).")
        return num_clips if self.options.sequential else 1

    def check(self, num_clips: int, batch_size: int) -> None:
        """Refuse a batch without negatives; see Method."""
        super().check(num_clips, batch_size)
        if batch_size < 2:
            raise ValueError(f"train.batch_size={batch_size} leaves no negatives: MoCo v3 needs at least 2 videos.")

    def forward(self, pixels: Tensor, pass_index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one query clip, or of all of them; see Method."""
        clips = pixels.unbind(dim=1)
        if pass_index == 0:
            self._keys = self._make_keys(clips)
        assert self._keys is not None, "passes must come in order, from 0"
        losses, hits = [], []
        for number in [pass_index] if self.options.sequential else range(len(clips)):
            predicted = self.predictor(self.projector(self.backbone(clips[number])))
            query = _unit(predicted)
            others = torch.stack([keys for other, keys in enumerate(self._keys) if other != number])
            with full_precision(query):
                loss, top1 = contrast_keys(query, others, self.options.temperature)
            losses.append(loss)
            hits.append(top1)
        total = torch.stack(losses).sum()
        if self.options.loss == "mean":
            total = total / len(clips)
        if pass_index == self.num_passes(len(clips)) - 1:
            self._keys = None
        return total, {
            "feature_std": self._spread(predicted),
            "contrast_top1": torch.stack(hits).mean(),
            "ema_momentum": self.get_buffer("momentum").detach().clone(),
        }

    def _spread(self, predicted: Tensor) -> Tensor:
        """Measure the collapse of predictions [B, D]."""
        spread = embedding_spread(predicted)
        # The output's batch norm scales what is left of collapsed embeddings up; only its epsilon shows them.
        return torch.minimum(spread, embedding_scale(predicted)) if self._predictor_ends_in_norm else spread

    @torch.no_grad()
    def _make_keys(self, clips: tuple[Tensor, ...]) -> Tensor:
        """Return the momentum network's embeddings of the clips of all ranks, [P, N, D] with unit rows."""
        # One forward pass per clip, so that batch norm never mixes clip positions.
        keys = torch.stack([_unit(self.momentum_projector(self.momentum_backbone(clip))) for clip in clips])
        return all_gather(keys).transpose(0, 1).flatten(1, 2)


def _unit(x: Tensor) -> Tensor:
    """Scale the rows of [..., D] to unit length in float32 or wider; rows of zeros, as of a collapse, stay zeros."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def contrast_keys(query: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute the loss of this rank's queries of one clip among the keys of all ranks.

    Args:
        query: [B, D] with unit rows.
        keys: [P - 1, N, D] with unit rows, the other clips of the videos of all ranks in rank order.
        temperature: T.

    Returns:
        The loss, a scalar whose mean over ranks is that of the whole batch; and the share of similarities, in [0, 1],
        in which the key of the same video is above those of all others.
    """
    similarity = query @ keys.transpose(1, 2) / temperature  # [P - 1, B, N]
    batch = len(query)
    own = torch.arange(rank() * batch, (rank() + 1) * batch, device=query.device).expand(len(keys), batch)
    loss = F.cross_entropy(similarity.flatten(0, 1), own.flatten())
    hits = similarity.detach().argmax(dim=2) == own
    return 2 * temperature * loss, hits.float().mean()
