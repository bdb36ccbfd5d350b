"""rho-MoCo (arXiv 1911.05722 through time: 2104.14558, section 3.1): tell another clip from a queue of others.

    query_i = normalize(project(backbone(clip_i)))       trained
    key_j   = normalize(project'(backbone'(clip_j)))     a moving average of the trained one; no gradient
    loss_i  = mean over j != i, and over videos, of -log(e^(query_i . key_j / T) / (that + sum_k e^(query_i . k / T)))

where k runs through the queue. After all rho queries the step's keys of *all* ranks replace the oldest of the queue:
clip by clip, within a clip in rank order, so every rank holds the same queue. (In the released code the queue of rank 0
alone survives; the paper's is this one.) The keys of the step under way are no negatives; older keys of the same video
are not masked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rhofast.config import Count, Positive, Section
from rhofast.distributed import all_gather, rank, shared_permutation, synchronize_batch_norm, world_size
from rhofast.methods.contract import MomentumMethod
from rhofast.methods.heads import MLP, embedding_spread, full_precision, normalize


class MocoOptions(Section):
    """Defaults are the released configuration's.

    hidden, out, projection_layers   projection: hidden width, dimension of the embedding, Linear layers; no batch norm
    temperature    T
    queue          negatives, in keys: at least those of one step
    queue_clips    "all" keys of a step enter the queue, or those of the "first" clip alone
    fill_first     no gradient until every key of the initial, random queue is replaced (weight decay goes on)
    positives      "separate": one softmax for each positive (release); "joint": all in one numerator (paper, eq. 1)
    ema_base       momentum of the moving average at the start; it rises to 1 along a cosine if `ema_anneal`
    loss           "sum" (release) or "mean" (paper) over the rho queries
    batch_norm     "local" to each rank, or "sync" over all
    shuffle        keys are made from clips shuffled over all ranks, so that local batch norm gives nothing away
    """

    hidden: Count = 2048
    out: Count = 128
    projection_layers: Count = 3
    temperature: Positive = 0.1
    queue: Count = 65536
    queue_clips: Literal["all", "first"] = "all"
    fill_first: bool = True
    positives: Literal["separate", "joint"] = "separate"
    ema_base: Annotated[float, Field(ge=0, le=1)] = 0.994
    ema_anneal: bool = True
    loss: Literal["sum", "mean"] = "sum"
    batch_norm: Literal["sync", "local"] = "local"
    shuffle: bool = True


class Moco(MomentumMethod):
    """See the module's docstring."""

    def __init__(self, backbone: nn.Module, options: MocoOptions) -> None:
        features = int(backbone.num_features)  # type: ignore[arg-type]
        projection = MLP(features, options.hidden, options.out, layers=options.projection_layers, batch_norm=False)
        super().__init__(backbone, projection, base=options.ema_base, anneal=options.ema_anneal)
        self.options = options
        if options.batch_norm == "sync":
            synchronize_batch_norm(self)
        bound = math.sqrt(3 / options.out)
        self.register_buffer("queue", torch.empty(options.queue, options.out).uniform_(-bound, bound))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))  # keys so far; the next goes to its modulo
        self._keys: Tensor | None = None  # [P, B, D], from part 0 to the last part of a step

    def num_parts(self, num_clips: int) -> int:
        if num_clips < 2:
            raise ValueError(f"MoCo needs at least 2 clips a video, got {num_clips}")
        return num_clips

    def forward(self, pixels: Tensor, part: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        clips = pixels.unbind(dim=1)
        if part == 0:
            self._keys = self._make_keys(clips, progress)
        assert self._keys is not None, "parts come in order, from 0"
        query = normalize(self.projection(self.backbone(clips[part])))
        last = part == self.num_parts(len(clips)) - 1
        with full_precision(query):
            others = [key for other, key in enumerate(self._keys) if other != part]
            positive = torch.stack([(query * key).sum(dim=-1) for key in others]) / self.options.temperature  # [P-1, B]
            queue = self.get_buffer("queue")
            # A copy for the backward of the last part: its keys are written over what it looked at.
            negative = query @ (queue.clone() if last else queue).T / self.options.temperature  # [B, K]
            loss = _contrast(positive, negative, joint=self.options.positives == "joint")
        if self.options.loss == "mean":
            loss = loss / len(clips)
        if self.options.fill_first:
            full = (self.get_buffer("written") >= len(queue)).to(loss.dtype)
            loss = loss.detach() + full * (loss - loss.detach())
        if last:
            self._enqueue(self._keys)
            self._keys = None
        return loss, {
            "feature_std": embedding_spread(query),
            "contrast_top1": (positive.detach() > negative.detach().amax(dim=1)).float().mean(),
            "ema_momentum": self.get_buffer("momentum").detach().clone(),
        }

    @torch.no_grad()
    def _make_keys(self, clips: Sequence[Tensor], progress: float) -> Tensor:
        """Move the key network, then embed every clip with it: [P, B, D], unit rows."""
        self.move_keys(progress, held=True)
        return torch.stack([self._embed_key(clip) for clip in clips])

    def _embed_key(self, clip: Tensor) -> Tensor:
        ranks = world_size()
        if not self.options.shuffle or ranks == 1:
            return normalize(self.key_projection(self.key_backbone(clip)))
        everyone = all_gather(clip.movedim(1, -1)).flatten(0, 1)  # channels last, as the clips lie in memory
        order = shared_permutation(len(everyone), clip.device)
        mine = everyone[order.chunk(ranks)[rank()]].movedim(-1, 1)
        shuffled = all_gather(normalize(self.key_projection(self.key_backbone(mine)))).flatten(0, 1)
        return shuffled[order.argsort()].chunk(ranks)[rank()]

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Write all ranks' keys, [P, B, D] each, over the oldest. Raises ValueError if there are more than fit."""
        if self.options.queue_clips == "first":
            keys = keys[:1]
        new = all_gather(keys).transpose(0, 1).flatten(0, 2)  # [P * W * B, D]
        queue, written = self.get_buffer("queue"), self.get_buffer("written")
        if len(new) > len(queue):
            raise ValueError(f"a step makes {len(new)} keys, more than the queue's {len(queue)}")
        queue.index_copy_(0, (written + torch.arange(len(new), device=queue.device)) % len(queue), new.to(queue.dtype))
        written += len(new)


def _contrast(positive: Tensor, negative: Tensor, *, joint: bool) -> Tensor:
    """Cross-entropy of positives [P-1, B] against negatives [B, K], both over the temperature; a scalar."""
    if joint:
        positive = positive.logsumexp(dim=0)
    return (torch.logaddexp(positive, negative.logsumexp(dim=1)) - positive).mean()
