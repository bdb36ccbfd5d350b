"""The commands that evaluate a backbone: `eval knn`, `eval linear`, `eval finetune`, and `embed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rhofast.checkpoint.run_folder import RunFolder
from rhofast.cli.console import (
    is_main_process,
    main_progress_bar,
    out,
    print_error,
    print_left_out,
    print_line,
    progress_bars,
)
from rhofast.cli.options import CONFIG, DATA, OUTPUT, RUN, CheckpointArgument, ConfigOption, Overrides, ShardsArgument
from rhofast.cli.tables import class_table, score_table
from rhofast.errors import EXIT_RESUMABLE, ConfigError
from rhofast.storage.files import check_writable

if TYPE_CHECKING:
    from rhofast.evaluation.scores import Evaluation
    from rhofast.evaluation.task import EvalTask

evaluate = typer.Typer(help="Evaluate a backbone on held-out shards.", no_args_is_help=True)

TestArgument = Annotated[
    str | None,
    typer.Argument(metavar="[SHARDS]", help="Held-out shards, in place of --test.", show_default=False),
]
TestOption = Annotated[
    str | None,
    typer.Option("--test", metavar="SHARDS", help="Folder or address of the held-out shards.", rich_help_panel=DATA),
]
TrainOption = Annotated[
    str | None,
    typer.Option(
        "--train", metavar="SHARDS", help="Labeled training shards. Default: those of the run.", rich_help_panel=DATA
    ),
]
TrainKeepOption = Annotated[
    Path | None,
    typer.Option(
        "--train-keep", metavar="FILE", help="List of the training samples to use. Default: all.", rich_help_panel=DATA
    ),
]
TestKeepOption = Annotated[
    Path | None,
    typer.Option(
        "--test-keep", metavar="FILE", help="List of the held-out samples to use. Default: all.", rich_help_panel=DATA
    ),
]
OverlapOption = Annotated[
    bool,
    typer.Option(
        "--allow-overlap",
        help="Warn, in place of refusing, if test samples come from training videos.",
        rich_help_panel=DATA,
    ),
]
UntrainedOption = Annotated[
    bool,
    typer.Option("--untrained", help="Evaluate the same backbone untrained, too.", rich_help_panel=OUTPUT),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="JSON",
        help="File for the result; the picture goes beside it. Default: in the run folder.",
        rich_help_panel=OUTPUT,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Continue the training; begin if it has not begun.", rich_help_panel=RUN),
]


@evaluate.command()
def knn(
    checkpoint: CheckpointArgument,
    shards: TestArgument = None,
    train: TrainOption = None,
    test: TestOption = None,
    train_keep: TrainKeepOption = None,
    test_keep: TestKeepOption = None,
    untrained: UntrainedOption = False,
    config: ConfigOption = None,
    allow_overlap: OverlapOption = False,
    target: OutOption = None,
    overrides: Overrides = None,
) -> None:
    """Weighted k-nearest neighbors on frozen features."""
    from rhofast.evaluation.knn import evaluate_neighbors

    task = _open(
        checkpoint,
        _test_shards(shards, test),
        train,
        config,
        overrides,
        allow_overlap,
        target,
        train_keep=train_keep,
        test_keep=test_keep,
    )
    with progress_bars("features") as (progress,):
        result = evaluate_neighbors(task, untrained=untrained, progress=progress)
    _report(result, target)


@evaluate.command()
def linear(
    checkpoint: CheckpointArgument,
    shards: TestArgument = None,
    train: TrainOption = None,
    test: TestOption = None,
    train_keep: TrainKeepOption = None,
    test_keep: TestKeepOption = None,
    untrained: UntrainedOption = False,
    config: ConfigOption = None,
    resume: ResumeOption = False,
    allow_overlap: OverlapOption = False,
    target: OutOption = None,
    overrides: Overrides = None,
) -> None:
    """A linear classifier on frozen features.

    Without --config: logistic regression on the features of center clips, its penalty chosen on a part of the training
    shards. With --config: SGD on augmented clips, as the config says.
    """
    from rhofast.evaluation.linear_probe import evaluate_linear

    if resume and config is None:
        raise ConfigError("--resume requires --config", hint="without it, --set eval.keep=FOLDER keeps the features")
    task = _open(
        checkpoint,
        _test_shards(shards, test),
        train,
        config,
        overrides,
        allow_overlap,
        target,
        train_keep=train_keep,
        test_keep=test_keep,
    )
    if config is not None:
        if untrained:
            raise ConfigError(
                "--untrained cannot be combined with --config", hint="give `random` in place of the checkpoint"
            )
        _classify(task, frozen=True, resume=resume, target=target)
        return
    with progress_bars("features", "fitting") as (progress, on_fit):
        result = evaluate_linear(task, untrained=untrained, progress=progress, on_fit=on_fit)
    _report(result, target)


@evaluate.command()
def finetune(
    checkpoint: CheckpointArgument,
    config: Annotated[
        str,
        typer.Option(
            "--config",
            metavar="CONFIG",
            help="TOML file, or name of a packaged config, such as eval/ucf101_paper.",
            rich_help_panel=CONFIG,
            show_default=False,
        ),
    ],
    shards: TestArgument = None,
    train: TrainOption = None,
    test: TestOption = None,
    train_keep: TrainKeepOption = None,
    test_keep: TestKeepOption = None,
    resume: ResumeOption = False,
    allow_overlap: OverlapOption = False,
    target: OutOption = None,
    overrides: Overrides = None,
) -> None:
    """Fine-tune the whole network on labeled shards, then test it."""
    task = _open(
        checkpoint,
        _test_shards(shards, test),
        train,
        config,
        overrides,
        allow_overlap,
        target,
        train_keep=train_keep,
        test_keep=test_keep,
    )
    _classify(task, frozen=False, resume=resume, target=target)


def embed(
    checkpoint: CheckpointArgument,
    shards: ShardsArgument,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="File to write: .parquet, .arrow, or .npy with OUT-keys.csv beside it.",
            show_default=False,
        ),
    ],
    keep: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="List of the samples to use. Default: all.", rich_help_panel=DATA),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Write the features of all samples of a set, with their keys."""
    from rhofast.data.sources import open_shards
    from rhofast.evaluation.embed import check_target
    from rhofast.evaluation.embed import embed as write_features
    from rhofast.evaluation.model import open_model

    check_target(target)
    model = open_model(checkpoint, overrides=overrides or [])
    opened = open_shards(shards, keep=keep, data=model.config.data)
    with progress_bars("features") as (progress,):
        result = write_features(model, opened, target, progress=progress)
    if not is_main_process():
        return
    print_left_out(result.left_out)
    print_line(f"{target}: {result.samples:,} samples, {result.width} numbers each; {model.origin}")


def _classify(task: EvalTask, *, frozen: bool, resume: bool, target: Path | None) -> None:
    from rhofast.training.finetune import Stopped, train_classifier

    with main_progress_bar(note=True) as progress:
        training = progress.add_task("training", total=None, note="", visible=False)
        testing = progress.add_task("testing", total=None, note="", visible=False)

        def on_log(line: dict[str, Any]) -> None:
            note = ""
            if line["kind"] == "step":
                note = f"loss {line['loss']:.3f}  top-1 {line['top1']:.1%}  {line['clips_per_second']:.0f} clips/s"
            progress.update(training, completed=line["step"], total=line["steps"], note=note, visible=True)

        result = train_classifier(
            task,
            kind="linear" if frozen else "finetune",
            resume=resume,
            on_log=on_log,
            progress=lambda done, total: progress.update(testing, completed=done, total=total, visible=True),
        )
    if isinstance(result, Stopped):
        print_error(f"{result.run}: saved at step {result.step} of {result.steps}; continue with --resume", style="")
        raise typer.Exit(EXIT_RESUMABLE)
    _report(result, target)


def _test_shards(shards: str | None, test: str | None) -> str:
    if (shards is None) == (test is None):
        raise ConfigError("the held-out shards must be given once", hint="--test SHARDS")
    return shards or test or ""


def _open(
    checkpoint: str,
    test: str,
    train: str | None,
    config: str | None,
    overrides: list[str] | None,
    allow_overlap: bool,
    target: Path | None,
    *,
    train_keep: Path | None,
    test_keep: Path | None,
) -> EvalTask:
    """Open what is evaluated. target: the file for the result; None: a file in the folder of the run."""
    from rhofast.evaluation.task import open_task

    if target is not None:
        check_writable(target)
    task = open_task(
        checkpoint,
        test,
        train=train,
        train_keep=train_keep,
        test_keep=test_keep,
        config_file=config,
        overrides=overrides or [],
        allow_overlap=allow_overlap,
    )
    if is_main_process():
        for note in task.notes:
            print_error(f"warning: {note}", style="yellow")
    return task


def _report(result: Evaluation, target: Path | None) -> None:
    from rhofast.evaluation.results import write_evaluation

    if not is_main_process():
        return
    path = target or RunFolder(result.folder).result(result.kind)
    if target is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    picture = write_evaluation(result, path)
    out.print(score_table(result))
    out.print(class_table(result))
    print_left_out(result.trained.left_out)
    print_line(f"Wrote {path} and {picture.name}")
