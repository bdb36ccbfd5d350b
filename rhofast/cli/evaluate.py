"""The commands that evaluate a backbone: `eval knn`, `linear`, `finetune`, `detection` and so on; `embed`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from rhofast.checkpoint.run_folder import set_name
from rhofast.cli.console import (
    is_main_process,
    main_progress_bar,
    out,
    print_error,
    print_left_out,
    print_line,
    progress_bars,
)
from rhofast.cli.eval_request import ConfiguredRequest, DetectionRequest, EvalRequest, spread
from rhofast.cli.options import DATA, OUTPUT, RUN, CheckpointArgument, Overrides, ShardsArgument
from rhofast.cli.tables import count_text, sweep_table
from rhofast.errors import EXIT_RESUMABLE, ConfigError

if TYPE_CHECKING:
    from rhofast.evaluation.scores import Evaluation
    from rhofast.training.classify import Stopped
    from rhofast.training.tuning_loop import Kind

Result = TypeVar("Result")

evaluate = typer.Typer(help="Evaluate a backbone on held-out shards.", no_args_is_help=True)

UntrainedOption = Annotated[
    bool,
    typer.Option("--untrained", help="Evaluate the same backbone untrained, too.", rich_help_panel=OUTPUT),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Continue the training; begin if it has not begun.", rich_help_panel=RUN),
]


@evaluate.command()
@spread
def knn(request: EvalRequest, untrained: UntrainedOption = False) -> None:
    """Weighted k-nearest neighbors on frozen features."""
    from rhofast.evaluation.knn import evaluate_neighbors

    task = request.open()
    with progress_bars("features") as (progress,):
        result = evaluate_neighbors(task, untrained=untrained, progress=progress)
    request.report(result)


@evaluate.command()
@spread
def retrieval(request: EvalRequest, untrained: UntrainedOption = False) -> None:
    """Recall at 1, 5, 10, 20 and 50: are the nearest training videos of the same class?"""
    from rhofast.evaluation.retrieval import evaluate_retrieval

    task = request.open()
    with progress_bars("features") as (progress,):
        result = evaluate_retrieval(task, untrained=untrained, progress=progress)
    request.report(result)


@evaluate.command()
@spread
def linear(request: EvalRequest, untrained: UntrainedOption = False, resume: ResumeOption = False) -> None:
    """A linear classifier on frozen features.

    Without --config: logistic regression on the features of center clips, its penalty chosen on a part of the training
    shards. With --config: SGD on augmented clips, as the config says.
    """
    from rhofast.evaluation.linear_probe import evaluate_linear

    if request.config is not None:
        if untrained:
            raise ConfigError(
                "--untrained cannot be combined with --config", hint="give `random` in place of the checkpoint"
            )
        request.report(_classify(request, "linear", resume=resume))
        return
    if resume:
        raise ConfigError("--resume requires --config", hint="without it, --set eval.keep=FOLDER keeps the features")
    task = request.open()
    with progress_bars("features", "fitting") as (progress, on_fit):
        result = evaluate_linear(task, untrained=untrained, progress=progress, on_fit=on_fit)
    request.report(result)


@evaluate.command()
@spread
def attentive(
    request: ConfiguredRequest,
    resume: ResumeOption = False,
    show_all: Annotated[
        bool,
        typer.Option(
            "--all", help="Print all rates and decays, with their scores on validation videos.", rich_help_panel=OUTPUT
        ),
    ] = False,
) -> None:
    """An attentive probe on the tokens of the frozen backbone.

    Probes with all rates and decays of the config are trained at once. One of them is chosen on a part of the training
    videos, and tested.
    """
    result = _classify(request, "attentive", resume=resume)
    request.report(result)
    if show_all and is_main_process():
        out.print(sweep_table(result.chosen))


@evaluate.command()
@spread
def finetune(request: ConfiguredRequest, resume: ResumeOption = False) -> None:
    """Fine-tune the whole network on labeled shards, then test it."""
    request.report(_classify(request, "finetune", resume=resume))


@evaluate.command()
@spread
def multilabel(request: ConfiguredRequest, resume: ResumeOption = False) -> None:
    """Fine-tune with several labels per video, then test it: mean average precision."""
    request.report(_classify(request, "multilabel", resume=resume))


@evaluate.command()
@spread
def detection(
    request: DetectionRequest,
    resume: ResumeOption = False,
    pictures: Annotated[
        int,
        typer.Option(min=1, max=200, help="Key frames of the page of pictures.", rich_help_panel=OUTPUT),
    ] = 12,
) -> None:
    """Fine-tune on boxes of persons with actions, as in AVA, then test by frame mAP.

    Both sets have a box file (rhofast boxes). Beside the result go the scores of all boxes, as AVA's official script
    reads them, and a page of key frames with boxes and scores.
    """
    from rhofast.training.detect import train_detector

    task = request.open()
    result = _train(lambda on_log, progress: train_detector(task, resume=resume, on_log=on_log, progress=progress))
    path = request.report(result.evaluation)
    if is_main_process():
        from rhofast.analysis.detection_page import draw_detections
        from rhofast.evaluation.detection import write_detections
        from rhofast.evaluation.results import beside

        table, page, evaluation = beside(path, "detections.csv"), beside(path, "detections.png"), result.evaluation
        write_detections(table, result.detected, task.test)
        measure, value = evaluation.trained.main
        drawn = draw_detections(
            page,
            task.test,
            task.test_found,
            result.detected,
            task.config,
            count=pictures,
            heading=(
                f"{set_name(evaluation.shards['test'])}: {measure} {value:.1%}",
                f"fine-tuned from {evaluation.origin}",
            ),
        )
        print_line(
            f"Wrote ...{table.name.removeprefix(path.stem)} and ...{page.name.removeprefix(path.stem)} "
            f"({drawn} key frames) beside it"
        )


def _classify(request: EvalRequest, kind: Kind, *, resume: bool) -> Evaluation:
    from rhofast.training.classify import train_classifier

    task = request.open()
    return _train(
        lambda on_log, progress: train_classifier(task, kind=kind, resume=resume, on_log=on_log, progress=progress)
    )


def _train(run: Callable[[Callable[[dict[str, Any]], None], Callable[[int, int], None]], Result | Stopped]) -> Result:
    """Run a training that is followed by a test, with its progress; raises Exit if it was stopped.

    Args:
        run: Called with what takes the lines of metrics, and what takes the progress of the test.
    """
    from rhofast.training.classify import Stopped

    with main_progress_bar(note=True) as progress:
        training = progress.add_task("training", total=None, note="", visible=False)
        testing = progress.add_task("testing", total=None, note="", visible=False)

        def on_log(line: dict[str, Any]) -> None:
            note, kind = "", line["kind"]
            if kind == "step":
                note = f"loss {line['loss']:.3f}  top-1 {line['top1']:.1%}  {line['clips_per_second']:.0f} clips/s"
            elif kind == "validation":
                print_error(f"step {line['step']:,}: {line['measure']} {line['score']:.1%} in validation", style="")
            elif kind in ("warning", "note"):
                print_error(f"step {line['step']:,}: {kind}: {line['text']}", style="yellow")
            progress.update(training, completed=line["step"], total=line["steps"], note=note, visible=True)

        result = run(on_log, lambda done, total: progress.update(testing, completed=done, total=total, visible=True))
    if isinstance(result, Stopped):
        print_error(f"{result.run}: saved at step {result.step} of {result.steps}; continue with --resume", style="")
        raise typer.Exit(EXIT_RESUMABLE)
    return result


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
    print_line(f"{target}: {count_text(result.samples, 'sample')}, {result.width} numbers each; {model.origin}")
