"""rho-SwAV (arXiv 2006.09882 through time: 2104.14558, section 3.1): predict the cluster of a clip from another one.

    z_i    = normalize(project(backbone(clip_i)))        scores_i = z_i . prototypes
    code_a = Sinkhorn-Knopp(scores_a)                    soft assignment, balanced over the prototypes; no gradient
    loss   = mean over a and over i != a, and over videos, of -sum_k code_a[k] log softmax(scores_i / T)[k]

The release makes codes of the first two clips whatever rho is. Codes are balanced over the batch of all ranks.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhofast.config import Count, Positive, Probability, Section
from rhofast.distributed import all_reduce_sum, synchronize_batch_norm
from rhofast.methods.contract import Method
from rhofast.methods.heads import MLP, embedding_spread, full_precision


class SwavOptions(Section):
    """Defaults are the released configuration's.

    hidden, out, projection_layers   projection: hidden width, dimension of the embedding, Linear layers
    prototypes     how many; K
    temperature    T
    sharpness      temperature of the scores that codes are made from
    sinkhorn_steps alternations between balanced prototypes and balanced videos
    codes          of the "first two" clips (release), or of "all"
    frozen         share of the run in which the prototypes get no gradient: the first of 200 epochs
    batch_norm     "sync" over all ranks, or "local"
    """

    hidden: Count = 2048
    out: Count = 128
    projection_layers: Count = 3
    prototypes: Count = 1000
    temperature: Positive = 0.1
    sharpness: Positive = 0.05
    sinkhorn_steps: Count = 3
    codes: Literal["first two", "all"] = "first two"
    frozen: Probability = 0.005
    batch_norm: Literal["sync", "local"] = "sync"


class Swav(Method):
    """See the module's docstring."""

    def __init__(self, backbone: nn.Module, options: SwavOptions) -> None:
        super().__init__()
        features = int(backbone.num_features)  # type: ignore[arg-type]
        self.options = options
        self.backbone = backbone
        self.projection = MLP(features, options.hidden, options.out, layers=options.projection_layers, batch_norm=True)
        self.prototypes = nn.Linear(options.out, options.prototypes, bias=False)
        if options.batch_norm == "sync":
            synchronize_batch_norm(self)

    def num_parts(self, num_clips: int) -> int:
        if num_clips < 2:
            raise ValueError(f"SwAV needs at least 2 clips a video, got {num_clips}")
        return 1

    def forward(self, pixels: Tensor, part: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        weight = self.prototypes.weight
        with torch.no_grad():
            weight.copy_(F.normalize(weight, dim=1))
        if progress <= self.options.frozen:  # a gradient of zeros: data parallelism waits for one of every parameter
            weight = weight.detach() + 0 * weight
        # One forward a clip: batch norm never mixes clip slots.
        embeddings = [self.projection(self.backbone(clip)) for clip in pixels.unbind(dim=1)]
        with full_precision(weight):
            scores = [F.normalize(embedding.to(weight.dtype), dim=1) @ weight.T for embedding in embeddings]  # [B, K]
            logs = [F.log_softmax(score / self.options.temperature, dim=1) for score in scores]
            targets = range(2 if self.options.codes == "first two" else len(scores))
            losses = []
            for target in targets:
                code = sinkhorn(scores[target].detach() / self.options.sharpness, self.options.sinkhorn_steps)
                losses += [-(code * log).sum(dim=1).mean() for number, log in enumerate(logs) if number != target]
        return torch.stack(losses).mean(), {"feature_std": embedding_spread(embeddings[0])}


@torch.no_grad()
def sinkhorn(scores: Tensor, steps: int) -> Tensor:
    """Codes [B, K] with rows of sum 1 and nearly equal column sums over the batches of all ranks, from scores [B, K] at
    their temperature (below 88: they are exponentiated). In float32, as released, whatever the precision of the run."""
    codes = scores.exp()
    codes /= all_reduce_sum(codes.sum())
    for _ in range(steps):
        codes /= all_reduce_sum(codes.sum(dim=0)) * codes.shape[1]
        codes /= codes.sum(dim=1, keepdim=True)
    return codes.float()
