"""kNN on held-out videos while a run trains: when it is due, and whether the videos are really held out."""

from __future__ import annotations

from torch import nn

from rhofast.checkpoint.run_folder import RunFolder
from rhofast.checkpoint.run_lines import read_metrics
from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.sampling.mixture import Mixture
from rhofast.distributed.collectives import gather_objects
from rhofast.distributed.process_group import rank
from rhofast.errors import ConfigError
from rhofast.evaluation.knn import evaluate_knn
from rhofast.evaluation.leakage import check_held_out
from rhofast.evaluation.scores import TOP1, TOP5
from rhofast.storage.address import is_remote
from rhofast.training.logger import MetricsLogger


class KnnMonitor:
    """Evaluate the backbone by kNN before the first step, every so many steps, and after the last."""

    def __init__(
        self, config: Config, shards: Mixture, test: ShardSet | None, steps_per_epoch: int, logger: MetricsLogger
    ) -> None:
        """Prepare to evaluate.

        Args:
            config: The run's configuration: `train.knn_steps` or `train.knn_epochs`, and `eval`.
            shards: What the run trains on; the first set is the bank of neighbors.
            test: Held-out shards, or None: no evaluation.
            steps_per_epoch: Steps of one pass through the training data.
            logger: Where the accuracy goes.
        """
        self._config, self._shards, self._test, self._logger = config, shards, test, logger
        self._every = config.train.knn_steps
        if config.train.knn_epochs is not None:
            self._every = max(1, round(config.train.knn_epochs * steps_per_epoch))

    def is_due(self, step: int) -> bool:
        """Return whether to evaluate after `step` optimizer steps."""
        if self._test is None or self._every is None:
            return False
        return step % self._every == 0 or step == self._logger.steps

    def is_missing(self, step: int) -> bool:
        """Return whether it is due, but was not done: an earlier process may have been stopped. Every rank calls it."""
        if not self.is_due(step):
            return False
        done = False
        if rank() == 0:
            try:
                lines = read_metrics(RunFolder(self._config.folder).metrics)
            except ConfigError:
                lines = []  # one evaluation too many is better than one too few
            done = any(line["kind"] == "knn" and line["step"] == step for line in lines)
        return not gather_objects(done)[0]

    def evaluate(self, step: int, backbone: nn.Module) -> None:
        """Evaluate the backbone after `step` optimizer steps and log its accuracy. Every rank calls it."""
        assert self._test is not None, "is_due"
        result = evaluate_knn(backbone, self._shards.sets[0], self._test, self._config)
        self._logger.knn(step, top1=result.measures[TOP1], top5=result.measures.get(TOP5), samples=result.samples)

    def warn_of_leakage(self, step: int) -> None:
        """Write a warning, on rank 0, if kNN tests on videos that are trained on.

        Of remote sets only the first is compared, whose index kNN reads anyway: those of others may take long.
        """
        if self._test is None or self._every is None or not self._logger.accelerator.is_main_process:
            return
        sources = zip(self._config.data.train, self._shards.sets, strict=True)
        compared = [
            shards for number, (source, shards) in enumerate(sources) if number == 0 or not is_remote(source.shards)
        ]
        for sentence in check_held_out(compared, self._test, allow=True):
            self._logger.write("warning", step=step, text=f"kNN is not on held-out videos: {sentence}")
