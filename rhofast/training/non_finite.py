"""Steps whose loss or gradients are not finite: undo their traces, report them, end the run after too many.

The update of such a step is skipped (step.py), so it changes no weight. But the forward pass before it has moved the
running mean and variance of every batch norm, where a single NaN would stay for good: in every evaluation, and in every
checkpoint. BatchNormGuard takes that back; methods guard their own queues. NonFiniteSteps reports the steps that all
ranks have agreed on (consensus.py).
"""

from __future__ import annotations

import shlex
from collections import deque

import torch
from torch import Tensor, nn

from rhofast.checkpoint.manager import WriteLine
from rhofast.config.schema import Config
from rhofast.errors import NotFiniteError
from rhofast.training.consensus import BadStep, StepConsensus, StepStatus

_SHOWN_STEPS, _SHOWN_RANKS = 5, 8  # in one error message


class BatchNormGuard:
    """The running statistics of a module's batch norms, as they were when they were finite last.

    Create it when the statistics are what the next step begins with, and call `restore` after every step. It works on
    the device alone: the host does not wait.
    """

    def __init__(self, module: nn.Module) -> None:
        self._statistics: list[Tensor] = [
            buffer
            for norm in module.modules()
            if isinstance(norm, nn.modules.batchnorm._NormBase)
            for buffer in norm.buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        self._finite = _flat(self._statistics)
        pieces = torch.split(self._finite, [tensor.numel() for tensor in self._statistics])
        self._views = [piece.view(tensor.shape) for piece, tensor in zip(pieces, self._statistics, strict=True)]

    @torch.no_grad()
    def restore(self) -> None:
        """Set each value that is no longer finite back to its last finite one."""
        if self._statistics:
            current = _flat(self._statistics)
            torch.where(current.isfinite(), current, self._finite, out=self._finite)
            torch._foreach_copy_(self._statistics, self._views)


class NonFiniteSteps:
    """Report steps that were not finite, with the address of their batch."""

    def __init__(self, config: Config, consensus: StepConsensus, write_line: WriteLine) -> None:
        """Prepare to report.

        Args:
            config: The run's configuration; `train.max_bad_steps` is the limit.
            consensus: Knows which ranks had a loss that was not finite.
            write_line: Called with "warning" lines.
        """
        self._config, self._consensus, self._write_line = config, consensus, write_line
        self._last_reported: int | None = None
        # step, epoch, position of the newest batches; the consensus is a step or two behind
        self._batches: deque[tuple[int, int, int]] = deque(maxlen=config.train.max_bad_steps + 4)

    def note_batch(self, step: int, epoch: int, position: int) -> None:
        """Remember a batch.

        Args:
            step: The step that consumes it, from 1.
            epoch: The epoch it belongs to.
            position: Its first sample's position in the order of that epoch.
        """
        self._batches.append((step, epoch, position))

    def check(self, status: StepStatus, step: int) -> NotFiniteError | None:
        """Warn about a new bad step; return the error that ends the run after too many in a row.

        Every rank calls it, with the same status.

        Args:
            status: What all ranks agree on.
            step: Optimizer steps done.
        """
        bad = status.last_bad_step
        if bad is not None and bad != self._last_reported:
            self._last_reported = bad
            text = f"loss or gradients of step {bad} were not finite: it changed no weight"
            self._write_line("warning", step=step, text=text)
        if status.consecutive_bad < self._config.train.max_bad_steps:
            return None
        return self._error(self._consensus.bad_steps(status))

    def _error(self, bad: list[BadStep]) -> NotFiniteError:
        addresses = {step: f"epoch {epoch}, position {position}" for step, epoch, position in self._batches}
        steps = [
            f"step {entry.step} ({addresses.get(entry.step, 'address unknown')}; {_whose(entry.ranks)})"
            for entry in bad
        ]
        if len(steps) > _SHOWN_STEPS:
            steps[_SHOWN_STEPS - 2 : -1] = ["..."]
        run, first = self._config.folder, bad[0]
        show = f"rhofast show {shlex.quote(str(run))} --step {first.step} --rank {min(first.ranks, default=0)}"
        return NotFiniteError(
            f"{run}: loss or gradients were not finite in {len(bad)} steps in a row "
            f"(train.max_bad_steps={self._config.train.max_bad_steps}): {', '.join(steps)}",
            hint=f"look at the batch: {show}; these steps changed no weight, and --resume continues from the newest "
            "checkpoint, with --accept-changes under other settings",
        )


def _whose(ranks: tuple[int, ...]) -> str:
    """Say whose loss was not finite."""
    shown = ", ".join(map(str, ranks[:_SHOWN_RANKS])) + (", ..." if len(ranks) > _SHOWN_RANKS else "")
    return f"loss of {'ranks' if len(ranks) > 1 else 'rank'} {shown}" if ranks else "gradients only"


def _flat(tensors: list[Tensor]) -> Tensor:
    """Return all values as f32[N]."""
    return torch.cat(
        [torch.empty(0, device=tensors[0].device if tensors else None), *(tensor.view(-1) for tensor in tensors)]
    )
