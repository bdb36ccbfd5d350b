"""The verbs of `rhofast eval`, and `embed`. No logic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rhofast.checkpoint.run_folder import RunFolder
from rhofast.cli.console import err, is_main_process, main_progress_bar, out, print_left_out, progress_bars, say
from rhofast.cli.options import Settings
from rhofast.cli.tables import class_table, score_table
from rhofast.errors import ConfigError
from rhofast.storage.files import check_writable

if TYPE_CHECKING:
    from rhofast.evaluation.scores import Evaluation
    from rhofast.evaluation.task import EvalTask

evaluate = typer.Typer(help="Evaluate a backbone on held-out shards.", no_args_is_help=True)

EvalModel = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="run or checkpoint folder, .safetensors, official .pyth, torchvision's .pth, or: random",
        show_default=False,
    ),
]
Held = Annotated[str | None, typer.Argument(metavar="[SHARDS]", help="held-out shards; or --test", show_default=False)]
Test = Annotated[str | None, typer.Option("--test", metavar="SHARDS", help="held-out shards, a folder or an address")]
Train = Annotated[str | None, typer.Option("--train", metavar="SHARDS", help="labeled shards (default: the run's)")]
Page = Annotated[Path | None, typer.Option("--config", help="recipe, see configs/eval/")]
Overlap = Annotated[
    bool, typer.Option("--allow-overlap", help="only warn where test samples come from training videos")
]
Untrained = Annotated[bool, typer.Option("--untrained", help="evaluate the same backbone untrained, too")]
Out = Annotated[Path | None, typer.Option("--out", help="JSON file (default: in the run); the picture goes beside it")]


@evaluate.command()
def knn(
    checkpoint: EvalModel,
    shards: Held = None,
    train: Train = None,
    test: Test = None,
    untrained: Untrained = False,
    page: Page = None,
    allow_overlap: Overlap = False,
    target: Out = None,
    settings: Settings = None,
) -> None:
    """Weighted k-nearest neighbors on held-out shards. Also under `accelerate launch`."""
    from rhofast.evaluation.knn import evaluate_neighbors

    task = _open(checkpoint, _one_test(shards, test), train, page, settings, allow_overlap, target)
    with progress_bars("features") as (progress,):
        result = evaluate_neighbors(task, untrained=untrained, progress=progress)
    _tell(result, target)


@evaluate.command()
def linear(
    checkpoint: EvalModel,
    shards: Held = None,
    train: Train = None,
    test: Test = None,
    untrained: Untrained = False,
    page: Page = None,
    resume: Annotated[bool, typer.Option("--resume", help="with --config: continue, or begin")] = False,
    allow_overlap: Overlap = False,
    target: Out = None,
    settings: Settings = None,
) -> None:
    """A linear classifier on frozen features: logistic regression on features of center clips, its penalty chosen on a
    part of the training shards. With --config: by SGD through the augmenting loader, as that page says."""
    from rhofast.evaluation.linear_probe import evaluate_linear

    if resume and page is None:
        raise ConfigError("--resume: only with --config", hint="without it, --set eval.keep=FOLDER keeps the features")
    task = _open(checkpoint, _one_test(shards, test), train, page, settings, allow_overlap, target)
    if page is not None:
        if untrained:
            raise ConfigError("--untrained: not with --config", hint="give `random` in place of the checkpoint")
        _classify(task, frozen=True, resume=resume, target=target)
        return
    with progress_bars("features", "fitting") as (progress, on_fit):
        result = evaluate_linear(task, untrained=untrained, progress=progress, on_fit=on_fit)
    _tell(result, target)


@evaluate.command()
def finetune(
    checkpoint: EvalModel,
    page: Annotated[Path, typer.Option("--config", help="recipe, see configs/eval/")],
    shards: Held = None,
    train: Train = None,
    test: Test = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue, or begin")] = False,
    allow_overlap: Overlap = False,
    target: Out = None,
    settings: Settings = None,
) -> None:
    """Train the whole network on labeled shards as a recipe says, then test it. Also under `accelerate launch`."""
    task = _open(checkpoint, _one_test(shards, test), train, page, settings, allow_overlap, target)
    _classify(task, frozen=False, resume=resume, target=target)


def embed(
    checkpoint: EvalModel,
    shards: Annotated[str, typer.Argument(metavar="SHARDS", help="folder or address", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=".parquet, .arrow, or .npy with OUT-keys.csv beside")],
    settings: Settings = None,
) -> None:
    """Write the features of all samples, with their keys. Also under `accelerate launch`."""
    from rhofast.data.sources import open_shards
    from rhofast.evaluation.embed import check_target
    from rhofast.evaluation.embed import embed as write_features
    from rhofast.evaluation.model import open_model

    check_target(target)
    model = open_model(checkpoint, overrides=settings or [])
    opened = open_shards(shards, data=model.config.data)
    with progress_bars("features") as (progress,):
        result = write_features(model, opened, target, progress=progress)
    if not is_main_process():
        return
    print_left_out(result.left_out)
    say(f"{target}: {result.samples:,} samples, {result.width} numbers each; {model.origin}")


def _classify(task: EvalTask, *, frozen: bool, resume: bool, target: Path | None) -> None:
    from rhofast.training.finetune import Stopped, train_classifier
    from rhofast.training.trainer import EXIT_RESUMABLE

    with main_progress_bar(note=True) as progress:
        training = progress.add_task("training", total=None, note="", visible=False)
        testing = progress.add_task("testing", total=None, note="", visible=False)

        def on_log(line: dict[str, Any]) -> None:
            if "text" in line:
                err.print(f"step {line['step']}: {line['kind']}: {line['text']}", markup=False, highlight=False)
            if line["kind"] not in ("start", "step"):
                return
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
        err.print(f"{result.run}: saved at step {result.step} of {result.steps}; go on with --resume", highlight=False)
        raise typer.Exit(EXIT_RESUMABLE)
    _tell(result, target)


def _one_test(shards: str | None, test: str | None) -> str:
    if (shards is None) == (test is None):
        raise ConfigError("give the held-out shards once: --test SHARDS")
    return shards or test or ""


def _open(
    checkpoint: str,
    test: str,
    train: str | None,
    page: Path | None,
    settings: list[str] | None,
    allow_overlap: bool,
    target: Path | None,
) -> EvalTask:
    """target: where the result will be written; None: in the folder of the checkpoint, or of what is trained on it."""
    from rhofast.evaluation.task import open_task

    if target is not None:
        check_writable(target)
    task = open_task(
        checkpoint, test, train=train, config_file=page, overrides=settings or [], allow_overlap=allow_overlap
    )
    if is_main_process():
        for note in task.notes:
            err.print(f"warning: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    return task


def _tell(result: Evaluation, target: Path | None) -> None:
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
    say(f"written: {path}, {picture.name}")
