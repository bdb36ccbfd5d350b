"""Scores on a part of the held-out set while a classifier is trained: when they are due, and what they were.

They show how training goes. The weights of the last step are tested, not those of the best epoch, since choosing an
epoch by test videos would be training on them; the result says which epoch was best.
"""

from __future__ import annotations

from typing import Any

from rhofast.checkpoint.run_folder import RunFolder
from rhofast.checkpoint.run_lines import read_metrics
from rhofast.config.schema import Config
from rhofast.distributed.collectives import gather_objects
from rhofast.distributed.process_group import rank
from rhofast.errors import ConfigError
from rhofast.evaluation.scores import Scores
from rhofast.training.logger import MetricsLogger


class ValidationCurve:
    """The scores by step, on every rank; those of the same videos before a resume are read from metrics.jsonl."""

    def __init__(self, config: Config, steps_per_epoch: int, logger: MetricsLogger, *, held_out: str) -> None:
        """Prepare; nothing is read before `open`.

        Args:
            config: The configuration, with `eval.validation_epochs`.
            steps_per_epoch: Steps of one pass through the training data.
            logger: Where the scores go.
            held_out: Digest of the held-out set.
        """
        epochs = config.eval.validation_epochs
        self._every = None if epochs is None else max(1, round(epochs * steps_per_epoch))
        self._path, self._steps_per_epoch, self._logger = RunFolder(config.folder).metrics, steps_per_epoch, logger
        self._held_out = f"{held_out}/{config.eval.validation_stride}"
        self._scores: dict[int, float] = {}

    def open(self, step: int) -> None:
        """Read the scores of earlier processes up to `step`; a file that cannot be read has none."""
        if self._every is None or not step:
            return
        scores: dict[int, float] = {}
        if rank() == 0:
            try:
                lines = read_metrics(self._path)
            except ConfigError as error:
                self._logger.write("warning", step=step, text=f"scores of validation are lost: {error.message}")
                lines = []
            scores = {
                line["step"]: line["score"]
                for line in lines
                if line["kind"] == "validation" and line.get("held_out") == self._held_out
            }
        self._scores = {at: score for at, score in gather_objects(scores)[0].items() if at <= step}

    def is_due(self, step: int) -> bool:
        """Return whether to validate after `step` optimizer steps: every so many, after the last one, and once."""
        if self._every is None or step in self._scores:
            return False
        return step % self._every == 0 or step == self._logger.steps

    def add(self, step: int, scores: Scores) -> None:
        """Take and log the scores after `step` optimizer steps."""
        measure, value = scores.main
        self._scores[step] = value
        self._logger.score(
            "validation", step, measure=measure, value=value, samples=scores.samples, held_out=self._held_out
        )

    def facts(self) -> dict[str, Any]:
        """Return the curve and its best epoch as JSON values; none without validation."""
        if not self._scores:
            return {}
        curve = [
            {"epoch": step / self._steps_per_epoch, "score": score} for step, score in sorted(self._scores.items())
        ]
        best = max(curve, key=lambda point: point["score"])  # the first of equal ones
        return {"validation": curve, "best_epoch": best["epoch"], "best_validation": best["score"]}
