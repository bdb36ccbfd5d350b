"""rho-SwAV (arXiv 2006.09882; for video 2104.14558, section 3.1): predict a clip's cluster from another clip.

    z_i    = normalize(project(backbone(clip_i)))        scores_i = z_i . prototypes
    code_a = Sinkhorn-Knopp(scores_a)                    soft assignment, balanced over the prototypes; no gradient
    loss   = mean over a and over i != a, and over videos, of -sum_k code_a[k] log softmax(scores_i / T)[k]

The loss is a cross-entropy, as in the released code; the paper prints a divergence of the prediction from the code. The
released code makes codes of the first two clips, whatever rho is. Codes are balanced over the batch of all ranks, so a
step cannot be split into micro-batches.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from rhofast.config.section import Count, NonNegative, Positive, Section
from rhofast.distributed.collectives import all_gather
from rhofast.distributed.process_group import rank
from rhofast.models.batch_norm import synchronize_batch_norm
from rhofast.models.methods.heads import build_projector, embedding_spread, full_precision
from rhofast.models.methods.method import Method, TrainingProgress

Sharpness = Annotated[float, Field(ge=0.0125, le=1e9)]  # 1 / it is exponentiated in float32, whose limit is exp(88.7)


class SwAVConfig(Section):
    """Options of SwAV. The defaults are those of the released configuration."""

    hidden: Count = 2048
    """Width of the projector's hidden layers."""

    out: Count = 128
    """Dimension of the embeddings."""

    projector_layers: Count = 3
    """Number of linear layers of the projector."""

    projector_norm: bool = True
    """Whether the projector has batch norm."""

    prototypes: Count = 1000
    """Number of prototypes (K)."""

    temperature: Positive = 0.1
    """Temperature T of the predicted scores."""

    sharpness: Sharpness = 0.05
    """Temperature of the scores from which codes are made (epsilon of the Sinkhorn-Knopp algorithm)."""

    sinkhorn_steps: Count = 3
    """Number of Sinkhorn-Knopp iterations, each of which balances prototypes and then videos."""

    balance: Literal["global", "local"] = "global"
    """Batch over which codes are balanced: that of all ranks ("global", the released code on several machines) or of
    each rank ("local", the released code on a single machine)."""

    pairs: Literal["all", "chain"] = "all"
    """Which clips are compared: "all" has one loss over all clips and one backward pass (released code). "chain" has
    rho - 1 losses of neighboring clips, each with its own backward pass, so that memory holds the activations of two
    clips (in the released code, but in none of its configurations)."""

    codes: Literal["first two", "all"] = "first two"
    """Clips of which codes are made: the "first two" (released code) or "all"."""

    loss: Literal["sum", "mean"] = "sum"
    """How the losses of a chain are combined: "sum" (released code) or "mean"."""

    frozen_epochs: NonNegative = 1.0
    """Number of epochs at the start in which the prototypes are not updated. 0: they are always updated."""

    queue: Count | None = None
    """Number of past embeddings, per coded clip, that help to balance the codes. None: no queue (released code)."""

    queue_epoch: NonNegative = 15.0
    """Epoch from which the queue is filled. It is used once it is full."""

    batch_norm: Literal["node", "sync", "local"] = "node"
    """Ranks over which batch norm takes its statistics: those of each machine ("node", released code: 8 GPUs), all
    ("sync"), or each rank alone ("local")."""

    @model_validator(mode="after")
    def _queue_fits(self) -> Self:
        if self.queue is not None and (self.codes == "all" or self.balance == "local"):
            raise ValueError(
                f'method.queue={self.queue} requires method.codes="first two" and method.balance="global" '
                f'(got "{self.codes}" and "{self.balance}").'
            )
        return self


class SwAV(Method):
    """rho-SwAV around a backbone; the module's docstring has its loss.

    Args:
        backbone: the backbone to train.
        options: the options of the method.
    """

    coupling = "SwAV balances its codes over all videos of a batch"

    def __init__(self, backbone: nn.Module, options: SwAVConfig) -> None:
        super().__init__()
        self.options = options
        self.backbone = backbone
        self.projector = build_projector(backbone, options)
        self.prototypes = nn.Linear(options.out, options.prototypes, bias=False)
        synchronize_batch_norm(self, options.batch_norm)
        if options.queue is not None:  # newest first; zeros where it is not filled yet
            self.register_buffer("queue", torch.zeros(2, options.queue, options.out))
            self.register_load_state_dict_post_hook(_count_queued)  # type: ignore[no-untyped-call]
        self._queued = 0  # filled places of the queue, a host number so that no step waits for the device
        self._epoch = 0.0  # of the current step

    def num_passes(self, num_clips: int) -> int:
        """Return one pass per pair of neighboring clips, or a single one."""
        if num_clips < 2:
            raise ValueError(f"SwAV needs at least 2 clips per video (got {num_clips}).")
        return num_clips - 1 if self.options.pairs == "chain" else 1

    @torch.no_grad()
    def begin_step(self, progress: TrainingProgress) -> None:
        """Normalize the prototypes; see Method."""
        self._epoch = progress.epoch
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def forward(self, pixels: Tensor, pass_index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a pair of neighboring clips, or of all clips; see Method."""
        clips = pixels.unbind(dim=1)
        if self.options.pairs == "chain":
            clips = clips[pass_index : pass_index + 2]
        # One forward pass per clip, so that batch norm never mixes clip positions.
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
        """Drop the gradient of frozen prototypes; see Method."""
        if 0 < self.options.frozen_epochs >= self._epoch:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def _make_codes(self, units: Tensor) -> Tensor:
        """Return the codes [A, B, K] of this rank's embeddings [A, B, D] of A coded clips."""
        local = self.options.balance == "local"
        gathered = units if local else all_gather(units).transpose(0, 1).flatten(1, 2)  # [A, W * B, D]
        pool = gathered
        if self.options.queue is not None and self._epoch >= self.options.queue_epoch:
            queue = self.get_buffer("queue")
            if self._queued == self.options.queue:
                pool = torch.cat([gathered, queue], dim=1)
            finite = gathered.isfinite().all(dim=-1, keepdim=True)  # others would spoil all later codes
            queue.copy_(torch.cat([torch.where(finite, gathered, queue[:, :1]), queue], dim=1)[:, : self.options.queue])
            self._queued = min(self.options.queue, self._queued + gathered.shape[1])
        scores = pool @ self.prototypes.weight.T / self.options.sharpness
        first, batch = 0 if local else rank() * units.shape[1], units.shape[1]
        return torch.stack([sinkhorn(each, self.options.sinkhorn_steps)[first : first + batch] for each in scores])


def _count_queued(module: nn.Module, _: Any) -> None:
    assert isinstance(module, SwAV)
    module._queued = int(module.get_buffer("queue")[0].any(dim=1).sum())


@torch.no_grad()
def sinkhorn(scores: Tensor, steps: int) -> Tensor:
    """Turn scores into codes by the Sinkhorn-Knopp algorithm.

    Args:
        scores: [N, K], divided by their temperature. They are exponentiated, so they must be below 88.
        steps: number of iterations.

    Returns:
        f32[N, K] with rows of sum 1 and nearly equal column sums. They are float32 whatever the precision of the run,
        as in the released code.
    """
    codes = scores.exp()
    codes /= codes.sum()
    for _ in range(steps):
        codes /= codes.sum(dim=0) * codes.shape[1]
        codes /= codes.sum(dim=1, keepdim=True)
    return codes.float()
