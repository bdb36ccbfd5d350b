"""rho-SimCLR (arXiv 2002.05709; for video 2104.14558, section 3.1): find the other clip in the batch.

    z_i     = normalize(project(backbone(clip_i)))
    loss    = mean over all z of -log(sum_positives e^(z . z' / T) / sum_others e^(z . z' / T))

Positives are clips of the same video. Others are all clips in the batch of all ranks except z itself. The released code
takes pairs of neighboring clips ("chain"), so that clips in the middle are embedded twice; the paper takes all clips at
once ("all"). With two clips, both are the same. The loss needs the whole batch, so a step cannot be split into
micro-batches.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rhofast.config.section import Count, Positive, Section
from rhofast.distributed.collectives import all_gather
from rhofast.distributed.process_group import rank
from rhofast.models.batch_norm import synchronize_batch_norm
from rhofast.models.methods.heads import build_projector, embedding_spread, full_precision, normalize
from rhofast.models.methods.method import Method


class SimCLRConfig(Section):
    """Options of SimCLR. The defaults are those of the released configuration."""

    hidden: Count = 2048
    """Width of the projector's hidden layers."""

    out: Count = 128
    """Dimension of the embeddings."""

    projector_layers: Count = 3
    """Number of linear layers of the projector."""

    projector_norm: bool = False
    """Whether the projector has batch norm. It has none in the released code, and has it in the paper."""

    temperature: Positive = 0.1
    """Temperature T of the similarities."""

    pairs: Literal["chain", "all"] = "chain"
    """Which clips are compared: "chain" has rho - 1 losses of neighboring clips, each with its own backward pass, so
    that memory holds the activations of two clips (released code). "all" has one loss over all clips (paper)."""

    loss: Literal["sum", "mean"] = "sum"
    """How the losses of a chain are combined: "sum" (released code) or "mean"."""

    batch_norm: Literal["node", "sync", "local"] = "node"
    """Ranks over which batch norm takes its statistics: those of each machine ("node", released code: 8 GPUs), all
    ("sync"), or each rank alone ("local")."""


class SimCLR(Method):
    """rho-SimCLR around a backbone; the module's docstring has its loss.

    Args:
        backbone: the backbone to train.
        options: the options of the method.
    """

    coupling = "SimCLR's loss compares every video of a batch with every other"

    def __init__(self, backbone: nn.Module, options: SimCLRConfig) -> None:
        super().__init__()
        self.options = options
        self.backbone = backbone
        self.projector = build_projector(backbone, options)
        synchronize_batch_norm(self, options.batch_norm)

    def num_passes(self, num_clips: int) -> int:
        """Return one pass per pair of neighboring clips, or a single one."""
        if num_clips < 2:
            raise ValueError(f"SimCLR needs at least 2 clips per video (got {num_clips}).")
        return num_clips - 1 if self.options.pairs == "chain" else 1

    def forward(self, pixels: Tensor, pass_index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a pair of neighboring clips, or of all clips; see Method."""
        clips = pixels.unbind(dim=1)
        if self.options.pairs == "chain":
            clips = clips[pass_index : pass_index + 2]
        # One forward pass per clip, so that batch norm never mixes clip positions.
        embeddings = torch.stack([normalize(self.projector(self.backbone(clip))) for clip in clips])
        with full_precision(embeddings):
            loss = contrast_all(embeddings, self.options.temperature)
        if self.options.loss == "mean":
            loss = loss / self.num_passes(pixels.shape[1])
        return loss, {"feature_std": embedding_spread(embeddings[0])}


def contrast_all(embeddings: Tensor, temperature: float) -> Tensor:
    """Compute the loss of this rank's embeddings among those of all ranks; a collective operation.

    Args:
        embeddings: [P, B, D] with unit rows.
        temperature: T.

    Returns:
        A scalar. Its mean over ranks is the loss of the whole batch.
    """
    num_clips, batch = embeddings.shape[:2]
    gathered = all_gather(embeddings)  # [W, P, B, D]
    ranks = gathered.shape[0]
    video = torch.arange(ranks * batch, device=embeddings.device).view(ranks, 1, batch).expand(ranks, num_clips, batch)
    similarity = embeddings.flatten(0, 1) @ gathered.flatten(0, 2).T / temperature  # [P * B, W * P * B]
    same = video[rank()].flatten()[:, None] == video.flatten()[None]
    itself = torch.zeros_like(same)
    itself[:, rank() * num_clips * batch :][:, : num_clips * batch].fill_diagonal_(True)
    positive = similarity.masked_fill(~same | itself, -torch.inf).logsumexp(dim=1)
    return (similarity.masked_fill(itself, -torch.inf).logsumexp(dim=1) - positive).mean()
