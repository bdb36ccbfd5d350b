"""The names of the files in a run folder, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = {
    "knn": "kNN",
    "retrieval": "retrieval",
    "linear": "linear probe",
    "attentive": "attentive probe",
    "finetune": "fine-tuning",
    "multilabel": "fine-tuning, several labels",
    "detection": "detection",
}
"""The kinds of evaluations, as their commands and files are named, with their names in tables."""

FINE_TUNED = ("finetune", "multilabel", "detection")
"""The kinds in which the weights of the backbone are trained. In all others they are those that are evaluated."""


def set_name(facts: Mapping[str, Any]) -> str:
    """Return the name of a shard set with its split, of what a result says of it; empty if it says nothing."""
    name, split = facts.get("name", ""), facts.get("split", "")
    return " ".join(dict.fromkeys(word for word in (name, "" if split == "all" else split) if word))


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder and the paths of its files.

        file                  what it holds                                          written by
        config.json           configuration of the run                               training
        metrics.jsonl         one JSON object per line: numbers, warnings, advice    training
        bad_samples.jsonl     samples that could not be used, and why                the loader
        trace.json            Chrome trace of the steps in train.profile_steps       training
        tensorboard/          event files of TensorBoard                             training
        trackers.json         ids under which trackers know the run                  training
        checkpoints/          step-00000500/, ..., and `latest`: name of the newest  training
        results/              knn-SET-SPLIT-DIGEST.json, ...: one per evaluation    rhofast eval
                              and what belongs to it beside it, named after it:
                              NAME-confusion.png       which class is taken for which
                              NAME-detections.csv      scores of all boxes           rhofast eval detection
                              NAME-detections.png      key frames with boxes         rhofast eval detection
        clips.png             training clips, for the report                         rhofast show
        report.html           metrics, curves, results                               rhofast report
        evals/NAME/           run folder of a classifier on top of this run          rhofast eval
        evals/NAME/task.json  what that classifier is trained on                     rhofast eval
        .lock                 held by the process that trains (run_lock.py)          training

    Attributes:
        path: The folder itself. It need not exist.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The configuration of the run."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """The metrics of the run, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def bad_samples(self) -> Path:
        """The samples that could not be used, one JSON object per line."""
        return self.path / "bad_samples.jsonl"

    @property
    def trace(self) -> Path:
        """The Chrome trace of the profiled steps."""
        return self.path / "trace.json"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def trackers(self) -> Path:
        """The ids under which trackers know the run."""
        return self.path / "trackers.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def latest(self) -> Path:
        """The file that holds the name of the newest checkpoint."""
        return self.checkpoints / "latest"

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:08d}"

    @property
    def evals(self) -> Path:
        """The folder of the evaluations of this run's weights."""
        return self.path / "evals"

    @property
    def task(self) -> Path:
        """In the folder of a trained classifier: what it is trained on, and on top of which weights."""
        return self.path / "task.json"

    @property
    def lock(self) -> Path:
        """The file that is locked while a process trains in the folder."""
        return self.path / ".lock"

    @property
    def results(self) -> Path:
        """The folder of the results of evaluations."""
        return self.path / "results"

    def result_files(self) -> list[Path]:
        """Return the files of all results, here and in the folders of trained classifiers, by folder and name."""
        folders = [self.path, *(sorted(self.evals.iterdir()) if self.evals.is_dir() else [])]
        return [path for folder in folders for path in sorted(RunFolder(folder).results.glob("*.json"))]

    @property
    def clips(self) -> Path:
        """The picture of training clips that the report shows."""
        return self.path / "clips.png"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"


def run_of(checkpoint: Path) -> RunFolder:
    """Return the run folder that a checkpoint folder (RUN/checkpoints/step-...) lies in."""
    return RunFolder(checkpoint.parent.parent)
