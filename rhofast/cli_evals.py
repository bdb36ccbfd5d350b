"""The verbs of `rhofast eval`, and `embed`. No logic."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TaskID

from rhofast.console import class_table, err, out, progress_bar, say, score_table
from rhofast.errors import ConfigError
from rhofast.files import check_writable

if TYPE_CHECKING:
    from rhofast.evals.case import Case
    from rhofast.evals.scores import Evaluation

evaluate = typer.Typer(help="Evaluate a backbone on held-out shards.", no_args_is_help=True)

Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key, e.g. a.b=3")]
Subject = Annotated[
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
    checkpoint: Subject,
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
    from rhofast.evals.neighbors import evaluate_neighbors

    case = _open(checkpoint, _one_test(shards, test), train, page, settings, allow_overlap, target)
    with _samples("features") as (progress,):
        result = evaluate_neighbors(case, untrained=untrained, progress=progress)
    _tell(result, target)


@evaluate.command()
def linear(
    checkpoint: Subject,
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
    from rhofast.evals.linear import evaluate_linear

    if resume and page is None:
        raise ConfigError("--resume: only with --config", hint="without it, --set eval.keep=FOLDER keeps the features")
    case = _open(checkpoint, _one_test(shards, test), train, page, settings, allow_overlap, target)
    if page is not None:
        if untrained:
            raise ConfigError("--untrained: not with --config", hint="give `random` in place of the checkpoint")
        _classify(case, frozen=True, resume=resume, target=target)
        return
    with _samples("features", "fitting") as (progress, on_fit):
        result = evaluate_linear(case, untrained=untrained, progress=progress, on_fit=on_fit)
    _tell(result, target)


@evaluate.command()
def finetune(
    checkpoint: Subject,
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
    case = _open(checkpoint, _one_test(shards, test), train, page, settings, allow_overlap, target)
    _classify(case, frozen=False, resume=resume, target=target)


def neighbors(
    checkpoint: Subject,
    shards: Annotated[str | None, typer.Option("--test", metavar="SHARDS", help="queries (default: the bank)")] = None,
    train: Annotated[str | None, typer.Option("--train", metavar="SHARDS", help="bank (default: the run's)")] = None,
    key: Annotated[list[str] | None, typer.Option(help="a query's key (default: some, spread over the set)")] = None,
    samples: Annotated[int, typer.Option(min=1, help="how many queries, without --key")] = 8,
    count: Annotated[int, typer.Option(min=1, help="neighbors of each")] = 5,
    target: Annotated[Path, typer.Option("--out", help=".png, or .gif or .mp4 that play")] = Path("neighbors.png"),
    settings: Settings = None,
) -> None:
    """A page of pictures: some videos, and beside each the ones that are nearest in feature space."""
    from rhofast.evals.retrieval import draw_neighbors, open_bank
    from rhofast.pictures import check_suffix

    check_suffix(target)
    check_writable(target)
    subject, bank, queries, chosen = open_bank(
        checkpoint, bank=train, queries=shards, keys=key or [], samples=samples, overrides=settings or []
    )
    with _samples("features") as (progress,):
        drawn = draw_neighbors(subject, bank, queries, chosen, target, count=count, progress=progress)
    if _is_first():
        _tell_left_out(drawn.left_out)
        asked = "1 query" if len(drawn.near) == 1 else f"{len(drawn.near)} queries"
        most = max((len(near.neighbors) for near in drawn.near), default=0)
        few = "" if most == count else "; there are no more of another source"
        say(f"{target}: {asked}, the {most} nearest of each{few}; {subject.origin}")


def embed(
    checkpoint: Subject,
    shards: Annotated[str, typer.Argument(metavar="SHARDS", help="folder or address", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=".parquet, .arrow, or .npy with OUT-keys.csv beside")],
    settings: Settings = None,
) -> None:
    """Write the features of all samples, with their keys. Also under `accelerate launch`."""
    from rhofast.data.remote import open_shards
    from rhofast.evals.embed import check_target
    from rhofast.evals.embed import embed as write_features
    from rhofast.evals.subject import open_subject

    check_target(target)
    subject = open_subject(checkpoint, overrides=settings or [])
    opened = open_shards(shards, data=subject.config.data)
    with _samples("features") as (progress,):
        result = write_features(subject, opened, target, progress=progress)
    if not _is_first():
        return
    _tell_left_out(result.left_out)
    say(f"{target}: {result.samples:,} samples, {result.width} numbers each; {subject.origin}")


def _classify(case: Case, *, frozen: bool, resume: bool, target: Path | None) -> None:
    from rhofast.evals.finetune import Stopped, train_classifier
    from rhofast.train import EXIT_RESUMABLE

    with _bar(note=True) as progress:
        training = progress.add_task("training", total=None, note="", visible=False)
        testing = progress.add_task("testing", total=None, note="", visible=False)

        def on_log(line: dict[str, Any]) -> None:
            note = ""
            if line["kind"] == "step":
                note = f"loss {line['loss']:.3f}  top-1 {line['top1']:.1%}  {line['clips_per_second']:.0f} clips/s"
            progress.update(training, completed=line["step"], total=line["steps"], note=note, visible=True)

        result = train_classifier(
            case,
            kind="linear" if frozen else "finetune",
            resume=resume,
            on_log=on_log,
            progress=lambda done, total: progress.update(testing, completed=done, total=total, visible=True),
        )
    if isinstance(result, Stopped):
        err.print(f"{result.run}: saved at step {result.step} of {result.steps}; go on with --resume", highlight=False)
        raise typer.Exit(EXIT_RESUMABLE)
    _tell(result, target)


@contextmanager
def _samples(*words: str) -> Iterator[list[Callable[[int, int], None]]]:
    """A bar for each of the words, seen when it is told how far it is."""
    with _bar() as progress:

        def reporter(task: TaskID) -> Callable[[int, int], None]:
            return lambda done, total: progress.update(task, completed=done, total=total, visible=True)

        yield [reporter(progress.add_task(word, total=None, visible=False)) for word in words]


def _bar(*, note: bool = False) -> Progress:
    """Of several processes, the first shows its own."""
    bar = progress_bar(note=note)
    bar.disable = not _is_first()
    return bar


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
) -> Case:
    """target: where the result will be written; None: in the folder of the checkpoint, or of what is trained on it."""
    from rhofast.evals.case import open_case

    if target is not None:
        check_writable(target)
    case = open_case(checkpoint, test, train=train, page=page, overrides=settings or [], allow_overlap=allow_overlap)
    if _is_first():
        for note in case.notes:
            err.print(f"warning: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    return case


def _tell(result: Evaluation, target: Path | None) -> None:
    from rhofast.evals.scores import write_evaluation

    if not _is_first():
        return
    path = target or result.folder / f"{result.kind}.json"
    if target is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    picture = write_evaluation(result, path)
    out.print(score_table(result))
    out.print(class_table(result))
    _tell_left_out(result.trained.left_out)
    say(f"written: {path}, {picture.name}")


def _tell_left_out(left_out: list[str]) -> None:
    if left_out:
        count = f"{len(left_out)} samples cannot be read and were left out"
        err.print(f"{count}; the first: {left_out[0]}", style="red", markup=False, highlight=False, soft_wrap=True)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"
