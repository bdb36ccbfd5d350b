"""What every command of `rhofast eval` takes: a backbone, shard sets and settings; and how it reports its result.

A command of `rhofast eval` is a function of an EvalRequest and of what it alone takes. `spread` puts the request's
fields on the command line.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from rhofast.cli.console import is_main_process, out, print_error, print_left_out, print_line
from rhofast.cli.options import CONFIG, DATA, OUTPUT, CheckpointArgument, ConfigOption, Overrides
from rhofast.cli.tables import class_table, score_table
from rhofast.errors import ConfigError
from rhofast.storage.files import check_writable

if TYPE_CHECKING:
    from rhofast.evaluation.detection_task import DetectionTask
    from rhofast.evaluation.scores import Evaluation
    from rhofast.evaluation.task import EvalTask

_TestArgument = Annotated[
    str | None,
    typer.Argument(metavar="[SHARDS]", help="Held-out shards, in place of --test.", show_default=False),
]
_TestOption = Annotated[
    str | None,
    typer.Option("--test", metavar="SHARDS", help="Folder or address of the held-out shards.", rich_help_panel=DATA),
]
_TrainOption = Annotated[
    str | None,
    typer.Option(
        "--train", metavar="SHARDS", help="Labeled training shards. Default: those of the run.", rich_help_panel=DATA
    ),
]
_TrainKeepOption = Annotated[
    Path | None,
    typer.Option(
        "--train-keep", metavar="FILE", help="List of the training samples to use. Default: all.", rich_help_panel=DATA
    ),
]
_TestKeepOption = Annotated[
    Path | None,
    typer.Option(
        "--test-keep", metavar="FILE", help="List of the held-out samples to use. Default: all.", rich_help_panel=DATA
    ),
]
_OverlapOption = Annotated[
    bool,
    typer.Option(
        "--allow-overlap",
        help="Warn, in place of refusing, if test samples come from training videos.",
        rich_help_panel=DATA,
    ),
]
_RequiredConfig = Annotated[
    str,
    typer.Option(
        "--config",
        metavar="CONFIG",
        help="TOML file, or name of a packaged config (rhofast configs list).",
        rich_help_panel=CONFIG,
        show_default=False,
    ),
]
_TrainBoxesOption = Annotated[
    Path | None,
    typer.Option(
        "--train-boxes",
        metavar="ARROW",
        help="Box file of the training shards. Default: boxes.arrow in their folder.",
        rich_help_panel=DATA,
    ),
]
_TestBoxesOption = Annotated[
    Path | None,
    typer.Option(
        "--test-boxes",
        metavar="ARROW",
        help="Box file of the held-out shards. Default: boxes.arrow in their folder.",
        rich_help_panel=DATA,
    ),
]
_OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="JSON",
        help="File for the result; what belongs to it goes beside it. Default: one of its own in results/ of the run.",
        rich_help_panel=OUTPUT,
    ),
]


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """What the user asks to evaluate. The fields are the options of the command line, in the order of the help."""

    checkpoint: CheckpointArgument
    shards: _TestArgument = None
    train: _TrainOption = None
    test: _TestOption = None
    train_keep: _TrainKeepOption = None
    test_keep: _TestKeepOption = None
    config: ConfigOption = None
    allow_overlap: _OverlapOption = False
    target: _OutOption = None
    overrides: Overrides = None

    def open(self) -> EvalTask:
        """Open what is evaluated, and print the warnings that belong to it.

        Raises:
            ConfigError: If the held-out shards are not given exactly once, or the result cannot be written; and as
                `open_task` does.
        """
        from rhofast.evaluation.task import open_task

        task = open_task(**self.arguments())
        warn(task)
        return task

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `open_task`; raises ConfigError if test shards or `--out` are not right."""
        if (self.shards is None) == (self.test is None):
            raise ConfigError("the held-out shards must be given once", hint="--test SHARDS")
        if self.target is not None:
            check_writable(self.target)
        return {
            "source": self.checkpoint,
            "test": self.shards or self.test or "",
            "train": self.train,
            "train_keep": self.train_keep,
            "test_keep": self.test_keep,
            "config_file": self.config,
            "overrides": self.overrides or [],
            "allow_overlap": self.allow_overlap,
        }

    def report(self, result: Evaluation) -> Path:
        """Print a result and write it to `--out`, or to a file in the folder of the run; rank 0 does.

        Returns:
            The path of the JSON file.
        """
        from rhofast.evaluation.results import write_evaluation

        path = self.target or result.path
        if not is_main_process():
            return path
        if self.target is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        picture = write_evaluation(result, path)
        out.print(score_table(result))
        out.print(class_table(result))
        print_left_out(result.trained.left_out)
        if "best_epoch" in result.chosen:
            best, score = result.chosen["best_epoch"], result.chosen["best_validation"]
            print_line(f"best in validation: {score:.1%} after epoch {best:g}; the last step was tested")
        print_line(
            f"Wrote {path}" if picture is None else f"Wrote {path} and ...{picture.name.removeprefix(path.stem)}"
        )
        return path


@dataclass(frozen=True, kw_only=True)
class ConfiguredRequest(EvalRequest):
    """A request for a training, which needs a config."""

    config: _RequiredConfig = field()


@dataclass(frozen=True, kw_only=True)
class DetectionRequest(ConfiguredRequest):
    """A request for the training and test of a detector."""

    train_boxes: _TrainBoxesOption = None
    test_boxes: _TestBoxesOption = None

    def open(self) -> DetectionTask:
        """Open what is evaluated, with the boxes; prints and raises as EvalRequest, and as `open_detection_task`."""
        from rhofast.evaluation.detection_task import open_detection_task

        task = open_detection_task(**self.arguments(), train_boxes=self.train_boxes, test_boxes=self.test_boxes)
        warn(task)
        return task


def warn(task: EvalTask) -> None:
    """Print the warnings that belong to a task, on rank 0."""
    if is_main_process():
        for note in task.notes:
            print_error(f"warning: {note}", style="yellow")


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Put a request's fields on the command line of a command.

    Args:
        command: A function whose first parameter is an EvalRequest. What its other parameters name follows on the
            command line.

    Returns:
        The same command, which Typer sees as a function of all these options.
    """
    first, *own = inspect.signature(command, eval_str=True).parameters.values()
    kind = first.annotation
    hints, names = get_type_hints(kind, include_extras=True), [one.name for one in fields(kind)]
    options = [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if one.default is MISSING else one.default,
            annotation=hints[one.name],
        )
        for one in fields(kind)
    ]
    options += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        command(kind(**{name: values.pop(name) for name in names}), **values)

    # Whoever unwraps the command, to ask for its parameters, gets those of the command line.
    del with_options.__wrapped__
    with_options.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in options}
    # The help breaks lines where the terminal ends, not where this file does.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    with_options.__doc__ = "\n\n".join(" ".join(text.split()) for text in paragraphs)
    return with_options
