"""Train a classifier on top of a backbone and test it: the linear probe by SGD, attentive probes, fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator

from rhofast.checkpoint.resume import naming
from rhofast.config.schema import Config
from rhofast.distributed.collectives import raise_on_lost_ranks
from rhofast.evaluation.features import Progress
from rhofast.evaluation.multiview import check_test
from rhofast.evaluation.scores import Evaluation, check_labeled, has_several
from rhofast.evaluation.task import EvalTask
from rhofast.training.attentive import MultilabelProbeTrainer, ProbeTrainer, check_probes
from rhofast.training.classifier_check import check_classifier, check_validation
from rhofast.training.finetune import ClassifierTrainer
from rhofast.training.loop import OnLog
from rhofast.training.multilabel import MultilabelTrainer
from rhofast.training.preemption import PreemptionHandler
from rhofast.training.setup import build_accelerator
from rhofast.training.trackers import check_trackers
from rhofast.training.tuning_loop import Kind, TuningLoop

Trainer = TypeVar("Trainer", bound=TuningLoop)
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """Training was asked to stop before its last step, and has saved.

    Attributes:
        run: The run folder of the classifier.
        step: Optimizer steps done.
        steps: Steps of the whole training.
    """

    run: Path
    step: int
    steps: int


def train_classifier(
    task: EvalTask, *, kind: Kind, resume: bool = False, on_log: OnLog | None = None, progress: Progress | None = None
) -> Evaluation | Stopped:
    """Train a classifier on a task's training shards as its config says, and test it; call it in every process.

    Args:
        task: Backbone, training shards, test shards and configuration.
        kind: "linear" leaves the backbone's weights as they are, "attentive" also, "finetune" trains them, and so does
            "multilabel", for several labels per video. "linear" and "attentive" learn several labels, too, if no video
            has a single one.
        resume: Continue from the newest checkpoint in the classifier's own folder, or begin if there is none.
        on_log: Called on rank 0 with each line of metrics, with `step` and `steps` in it.
        progress: Called during the test with samples done and samples in all.

    Returns:
        The result of the test, or where training stopped early.

    Raises:
        ConfigError: Settings do not fit together, the folder exists and `resume` is off, or a tracker does not begin.
        DependencyError: A tracker is not installed.
        ResumeError: Nothing whole to continue from, or the folder belongs to another task.
        ShardError: The data cannot be opened.
        SampleError: Too many samples are bad.
        NotFiniteError: The loss of a step was not finite.
        SaveError: The last checkpoint could not be written.
    """
    section = task.config.eval
    together, clips = section.probe_clips if kind == "attentive" else 1, task.config.clips
    parts = together if clips.rule != "segments" and clips.unlimited else 1  # else their places are chosen already
    clips = clips.model_copy(update={"num_clips": section.repeats * together, "parts": parts})
    config = task.config.model_copy(update={"clips": clips})
    trains = kind in ("finetune", "multilabel")
    several = kind == "multilabel" or (kind in ("linear", "attentive") and has_several(task.train))
    check_classifier(config, task.train, trains_backbone=trains, several=several)
    if kind == "attentive":
        check_probes(config)
    check_validation(task, config, several=several)
    check_test(task.model.backbone, config)
    check_labeled(task.test, several=several)
    trainers: tuple[type[ClassifierTrainer], type[ClassifierTrainer]] = (ClassifierTrainer, MultilabelTrainer)
    if kind == "attentive":
        trainers = (ProbeTrainer, MultilabelProbeTrainer)
    trainer_of = trainers[several]
    return train_and_test(
        lambda accelerator: trainer_of(task, config, kind, accelerator, on_log),
        lambda trainer: trainer.test(progress),
        config,
        resume=resume,
    )


def train_and_test(
    build: Callable[[Accelerator], Trainer], test: Callable[[Trainer], Result], config: Config, *, resume: bool
) -> Result | Stopped:
    """Take all steps of a trainer and test what it has trained; call it in every process.

    Args:
        build: Builds the trainer.
        test: Tests it, when all steps are taken.
        config: Configuration of the training.
        resume: Continue from the newest checkpoint in the folder of `config`, or begin if there is none.

    Returns:
        What `test` returns, or where training stopped early.

    Raises:
        RhofastError: As `train_classifier`.
    """
    check_trackers(config.train)
    accelerator = build_accelerator(config)
    with raise_on_lost_ranks():
        trainer = build(accelerator)
        with PreemptionHandler(config.train.max_hours) as preemption, trainer.checkpoints, trainer.loader:
            opened = trainer.checkpoints.open(resume=resume, check=trainer.check_same_task)
            if opened.checkpoint is not None:
                with naming(opened.folder):
                    trainer.restore(opened.checkpoint)
            with trainer.logger.ending(lambda: trainer.step):
                finished = trainer.run(preemption, opened.notes)
        if not finished:
            trainer.logger.end_trackers(trainer.step, "stopped")
            return Stopped(run=config.folder, step=trainer.step, steps=trainer.steps)
        with trainer.logger.ending(lambda: trainer.step):
            result = test(trainer)
        trainer.logger.end_trackers(trainer.step, "finished")
        return result
