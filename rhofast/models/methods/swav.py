"""rho-SwAV (arXiv 2006.09882 through time: 2104.14558, section 3.1): predict the cluster of a clip from another one.

    z_i    = normalize(project(backbone(clip_i)))        scores_i = z_i . prototypes
    code_a = Sinkhorn-Knopp(scores_a)                    soft assignment, balanced over the prototypes; no gradient
    loss   = mean over a and over i != a, and over videos, of -sum_k code_a[k] log softmax(scores_i / T)[k]

(a cross-entropy, as released; the paper prints a divergence of the prediction from the code). The release makes codes
of the first two clips whatever rho is. Codes are balanced over the batch of all ranks, so a step is not split into
micro-batches.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from rhofast.config.section import Count, Positive, Section
from rhofast.distributed.collectives import all_gather
from rhofast.distributed.process_group import rank
from rhofast.models.batch_norm import synchronize_batch_norm
from rhofast.models.methods.heads import build_projector, embedding_spread, full_precision
from rhofast.models.methods.method import Method, TrainingProgress

Epochs = Annotated[float, Field(ge=0)]
Sharpness = Annotated[float, Field(ge=0.0125)]  # cosines over it are exponentiated and added, in float32: exp(88.7)


class SwAVConfig(Section):
    """Defaults are the released configuration's.

    hidden, out, projector_layers   projector: hidden width, dimension of the embedding, Linear layers
    projector_norm  batch norm inside the projector
    prototypes     how many; K
    temperature    T
    sharpness      temperature of the scores that codes are made from (Sinkhorn's epsilon)
    sinkhorn_steps alternations between balanced prototypes and balanced videos
    balance        codes are balanced over the batch of all ranks ("global"; release on several machines), or over each
                   rank's own ("local"; release on a single machine)
    pairs          "all" clips in one loss and one backward (release); "chain": rho - 1 losses of neighbors, each with
                   its own backward (in the code, but not in a released configuration): activations of two clips
    codes          of the "first two" clips (release), or of "all"
    loss           of a chain: "sum" (release) or "mean" over its pairs
    frozen_epochs  the prototypes are not updated up to and with this epoch; 0: they always are
    queue          embeddings of past batches, for each of the two coded clips, that help to balance; None: without
                   (release). It fills from `queue_epoch` on and is used once it is full
    batch_norm     over the ranks of each machine ("node", release: 8 GPUs), over all ranks ("sync"), or "local"
    """

    hidden: Count = 2048
    out: Count = 128
    projector_layers: Count = 3
    projector_norm: bool = True
    prototypes: Count = 1000
    temperature: Positive = 0.1
    sharpness: Sharpness = 0.05
    sinkhorn_steps: Count = 3
    balance: Literal["global", "local"] = "global"
    pairs: Literal["all", "chain"] = "all"
    codes: Literal["first two", "all"] = "first two"
    loss: Literal["sum", "mean"] = "sum"
    frozen_epochs: Epochs = 1.0
    queue: Count | None = None
    queue_epoch: Epochs = 15.0
    batch_norm: Literal["node", "sync", "local"] = "node"

    @model_validator(mode="after")
    def _queue_fits(self) -> Self:
        if self.queue is not None and (self.codes == "all" or self.balance == "local"):
            raise ValueError('a queue goes with codes = "first two" and balance = "global"')
        return self


class SwAV(Method):
    """See the module's docstring."""

    coupling = "SwAV balances its codes over all videos of a batch"

    def __init__(self, backbone: nn.Module, options: SwAVConfig) -> None:
        super().__init__()
        self.options = options
        self.backbone = backbone
        self.projector = build_projector(backbone, options)
        self.prototypes = nn.Linear(options.out, options.prototypes, bias=False)
        synchronize_batch_norm(self, options.batch_norm)
        if options.queue is not None:  # newest first; zeros where it is not yet filled
            self.register_buffer("queue", torch.zeros(2, options.queue, options.out))
            self.register_load_state_dict_post_hook(_count_queued)  # type: ignore[no-untyped-call]
        self._queued = 0  # places of the queue that are filled: a number, so that no step asks the device for it
        self._epoch = 0.0  # of the step under way

    def num_passes(self, num_clips: int) -> int:
        if num_clips < 2:
            raise ValueError(f"SwAV needs at least 2 clips a video, got {num_clips}")
        return num_clips - 1 if self.options.pairs == "chain" else 1

    @torch.no_grad()
    def begin_step(self, progress: TrainingProgress) -> None:
        self._epoch = progress.epoch
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def forward(self, pixels: Tensor, pass_index: int) -> tuple[Tensor, dict[str, Tensor]]:
        clips = pixels.unbind(dim=1)
        if self.options.pairs == "chain":
            clips = clips[pass_index : pass_index + 2]
        # One forward a clip: batch norm never mixes clip slots.
        embeddings = [self.projector(self.backbone(clip)) for clip in clips]
        weight = self.prototypes.weight
        with full_precision(weight):
            units = [F.normalize(embedding.to(weight.dtype), dim=1) for embedding in embeddings]  # [B, D]
            logs = [F.log_softmax(unit @ weight.T / self.options.temperature, dim=1) for unit in units]  # [B, K]
            coded = len(units) if self.options.codes == "all" else 2
            losses = []
            for target, code in enumerate(self._make_codes(torch.stack(units[:coded]))):
                losses += [-(code * log).sum(dim=1).mean() for number, log in enumerate(logs) if number != target]
        loss = torch.stack(losses).mean()
        if self.options.loss == "mean":
            loss = loss / self.num_passes(pixels.shape[1])
        return loss, {"feature_std": embedding_spread(embeddings[0])}

    def end_step(self) -> None:
        """Drop the gradient of frozen prototypes."""
        if 0 < self.options.frozen_epochs >= self._epoch:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def _make_codes(self, units: Tensor) -> Tensor:
        """Codes [A, B, K] of this rank's embeddings [A, B, D], one row of A for each coded clip."""
        alone = self.options.balance == "local"
        everyone = units if alone else all_gather(units).transpose(0, 1).flatten(1, 2)  # [A, W * B, D]
        pool = everyone
        if self.options.queue is not None and self._epoch >= self.options.queue_epoch:
            queue = self.get_buffer("queue")
            if self._queued == self.options.queue:
                pool = torch.cat([everyone, queue], dim=1)
            finite = everyone.isfinite().all(dim=-1, keepdim=True)  # others would spoil all codes that come from it
            queue.copy_(torch.cat([torch.where(finite, everyone, queue[:, :1]), queue], dim=1)[:, : self.options.queue])
            self._queued = min(self.options.queue, self._queued + everyone.shape[1])
        scores = pool @ self.prototypes.weight.T / self.options.sharpness
        first, batch = 0 if alone else rank() * units.shape[1], units.shape[1]
        return torch.stack([sinkhorn(each, self.options.sinkhorn_steps)[first : first + batch] for each in scores])


def _count_queued(module: nn.Module, _: Any) -> None:
    assert isinstance(module, SwAV)
    module._queued = int(module.get_buffer("queue")[0].any(dim=1).sum())


@torch.no_grad()
def sinkhorn(scores: Tensor, steps: int) -> Tensor:
    """Codes [N, K] with rows of sum 1 and nearly equal column sums, from scores [N, K] at their temperature (below 88:
    they are exponentiated). In float32, as released, whatever the precision of the run."""
    codes = scores.exp()
    codes /= codes.sum()
    for _ in range(steps):
        codes /= codes.sum(dim=0) * codes.shape[1]
        codes /= codes.sum(dim=1, keepdim=True)
    return codes.float()
