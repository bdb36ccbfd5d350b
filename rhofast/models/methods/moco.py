"""rho-MoCo (arXiv 1911.05722; for video 2104.14558, section 3.1): match clips of a video against a queue of others.

    query_i = normalize(project(backbone(clip_i)))       trained
    key_j   = normalize(project'(backbone'(clip_j)))     momentum network (moving average); no gradient
    loss_i  = mean over j != i, and over videos, of -log(p / (p + sum_k e^(query_i . k / T)))
              with p = e^(query_i . key_j / T)

where k runs over the queue. After all rho queries, the step's keys of *all* ranks replace the oldest ones in the queue:
clip by clip, and in rank order within a clip, so that every rank holds the same queue. The keys of the current step are
not negatives; older keys of the same video are not masked. The loss does not couple the videos of a batch. So without
batch norm, the gradients of micro-batches add up to those of the batch, and the queue takes the same keys in the same
order.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rhofast.config.section import Count, Positive, Section
from rhofast.distributed.collectives import all_gather, shared_permutation
from rhofast.distributed.process_group import node_group, rank, world_size
from rhofast.models.batch_norm import synchronize_batch_norm
from rhofast.models.methods.heads import build_projector, embedding_spread, full_precision, normalize
from rhofast.models.methods.method import TrainingProgress
from rhofast.models.methods.momentum import MomentumMethod


class MoCoConfig(Section):
    """Options of MoCo. The defaults are those of the released configuration, except for `queue_ranks`."""

    hidden: Count = 2048
    """Width of the projector's hidden layers."""

    out: Count = 128
    """Dimension of the embeddings."""

    projector_layers: Count = 3
    """Number of linear layers of the projector."""

    projector_norm: bool = False
    """Whether the projector has batch norm. It has none in the released code and in the paper."""

    temperature: Positive = 0.1
    """Temperature T of the similarities."""

    queue: Count = 65536
    """Number of keys in the queue of negatives. It must hold at least the keys of one step."""

    queue_clips: Literal["all", "first"] = "all"
    """Clips whose keys enter the queue: "all" of a step, or only the "first" key clip."""

    queue_ranks: Literal["all", "first"] = "all"
    """Ranks whose keys enter the queue: "all" (paper) or only the "first". The latter is the effect of the released
    code, whose queues are not gathered and are overwritten with the first rank's before every step."""

    fill_first: bool = True
    """Whether the first steps only fill the queue: while fewer videos have passed than the queue has places, within
    the first epoch, the weights are not updated. The momentum network, the queue and running statistics are."""

    positives: Literal["separate", "joint"] = "separate"
    """How positives enter the loss: "separate" is one softmax per positive (released code), "joint" has all of them in
    one numerator (paper, equation 1)."""

    ema_base: Annotated[float, Field(ge=0, le=1)] = 0.994
    """Momentum of the moving average at the start of the run."""

    ema_anneal: bool = True
    """Whether the momentum rises to 1 along a cosine over the run. False: it stays at `ema_base`."""

    loss: Literal["sum", "mean"] = "sum"
    """How the losses of the rho queries are combined: "sum" (released code) or "mean" (paper)."""

    sequential: bool = True
    """Whether every clip is the query in turn, each with its own backward pass, so that memory holds the activations
    of one clip. False: only the first clip is a query, the keys of the others are made in one batch, and the momentum
    is annealed before its use (in the released code, but in none of its configurations)."""

    batch_norm: Literal["node", "sync", "local"] = "local"
    """Ranks over which batch norm takes its statistics: each rank alone ("local", released code), those of each
    machine ("node"), or all ("sync")."""

    shuffle: bool = True
    """Whether keys are computed from clips shuffled over the ranks of a machine, so that local batch norm statistics
    do not reveal which clips belong together. It has no effect with other kinds of batch norm."""


class MoCo(MomentumMethod):
    """rho-MoCo around a backbone; the module's docstring has its loss.

    Args:
        backbone: the backbone to train.
        options: the options of the method.
    """

    def __init__(self, backbone: nn.Module, options: MoCoConfig) -> None:
        projector = build_projector(backbone, options)
        base, anneal = options.ema_base, options.ema_anneal
        super().__init__(backbone, projector, base=base, anneal=anneal, use_previous=options.sequential)
        self.options = options
        synchronize_batch_norm(self, options.batch_norm)
        self._shuffle = options.shuffle and options.batch_norm == "local" and world_size() > 1
        self._node = node_group() if self._shuffle else None
        bound = math.sqrt(3 / options.out)
        self.register_buffer("queue", torch.empty(options.queue, options.out).uniform_(-bound, bound))
        self.register_buffer(
            "written", torch.zeros((), dtype=torch.int64)
        )  # number of keys so far; the next is stored at its remainder
        self._keys: list[Tensor] = []  # [keys, B, D] of each micro-batch of the current step
        self._progress = TrainingProgress(step=0, epoch=0.0, epochs=1.0)  # of the current step

    def num_passes(self, num_clips: int) -> int:
        """Return one pass per query clip, or a single one."""
        if num_clips < 2:
            raise ValueError(f"MoCo needs at least 2 clips per video (got {num_clips}).")
        return num_clips if self.options.sequential else 1

    def check(self, num_clips: int, batch_size: int) -> None:
        """Refuse a queue that is smaller than the keys of one step; see Method."""
        options = self.options
        clips = self.num_passes(num_clips) if options.sequential else num_clips - 1
        keys = batch_size * (clips if options.queue_clips == "all" else 1)
        keys //= world_size() if options.queue_ranks == "first" else 1
        if keys > options.queue:
            raise ValueError(
                f"method.queue={options.queue} must hold the keys of one step (got {keys}). "
                "Increase method.queue or reduce train.batch_size."
            )

    def begin_step(self, progress: TrainingProgress) -> None:
        """Update the momentum network; see Method."""
        super().begin_step(progress)
        self._keys.clear()
        self._progress = progress

    def forward(self, pixels: Tensor, pass_index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one query clip; see Method."""
        clips = pixels.unbind(dim=1)
        sequential = self.options.sequential
        if pass_index == 0:
            self._keys.append(self._make_keys(clips))
        query = normalize(self.projector(self.backbone(clips[pass_index])))
        with full_precision(query):
            others = [key for other, key in enumerate(self._keys[-1]) if not (sequential and other == pass_index)]
            positive = torch.stack([(query * key).sum(dim=-1) for key in others]) / self.options.temperature  # [P-1, B]
            negative = query @ self.get_buffer("queue").T / self.options.temperature  # [B, K]
            loss = _contrast(positive, negative, joint=self.options.positives == "joint")
        if self.options.loss == "mean":
            loss = loss / self.num_passes(len(clips))
        return loss, {
            "feature_std": embedding_spread(query),
            "contrast_top1": (positive.detach() > negative.detach().amax(dim=1)).float().mean(),
            "ema_momentum": self.get_buffer("momentum").detach().clone(),
        }

    def end_step(self) -> None:
        """Put the step's keys into the queue, and drop the gradients of a step that only fills it."""
        keys = torch.cat(self._keys, dim=1)
        self._keys.clear()
        self._enqueue(keys)
        videos = self._progress.step * keys.shape[1] * world_size()
        if self.options.fill_first and videos < self.options.queue and self._progress.epoch < 1:
            self.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _make_keys(self, clips: tuple[Tensor, ...]) -> Tensor:
        """Return the momentum network's embeddings of all key clips, [keys, B, D] with unit rows."""
        if self.options.sequential:
            return torch.stack([self._embed_key(clip) for clip in clips])
        return torch.stack(self._embed_key(torch.cat(clips[1:])).chunk(len(clips) - 1))

    def _embed_key(self, clips: Tensor) -> Tensor:
        if not self._shuffle:
            return normalize(self.momentum_projector(self.momentum_backbone(clips)))
        node, ranks = self._node, world_size(self._node)
        gathered = all_gather(clips.movedim(1, -1), node).flatten(0, 1)  # channels last: the clips' layout in memory
        order = shared_permutation(len(gathered), clips.device)
        part = gathered[order.chunk(ranks)[rank(node)]].movedim(-1, 1)
        shuffled = all_gather(normalize(self.momentum_projector(self.momentum_backbone(part))), node).flatten(0, 1)
        return shuffled[order.argsort()].chunk(ranks)[rank(node)]

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys of the queue by those of all ranks, [keys, B, D] per rank."""
        if self.options.queue_clips == "first":
            keys = keys[:1]
        gathered = all_gather(keys)  # [W, keys, B, D]
        if self.options.queue_ranks == "first":
            gathered = gathered[:1]
        new = gathered.transpose(0, 1).flatten(0, 2)
        queue, written = self.get_buffer("queue"), self.get_buffer("written")
        assert len(new) <= len(queue), "check() refuses such batches"
        places = (written + torch.arange(len(new), device=queue.device)) % len(queue)
        new = new.to(queue.dtype)
        finite = new.isfinite().all(dim=1, keepdim=True)  # others would enter every loss until replaced
        queue.index_copy_(0, places, torch.where(finite, new, queue[places]))
        written += len(new)


def _contrast(positive: Tensor, negative: Tensor, *, joint: bool) -> Tensor:
    """Return the cross-entropy (a scalar) of similarities to positives [P-1, B] and negatives [B, K], both over T."""
    if joint:
        positive = positive.logsumexp(dim=0)
    return (torch.logaddexp(positive, negative.logsumexp(dim=1)) - positive).mean()
