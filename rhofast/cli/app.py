"""The command line: verbs that parse, call one function, and show. No logic.

Every deliberate error is one line and a hint on standard error, exit code 2; `--debug` shows the traceback. A run that
was stopped by a signal or by `max_hours` and can be resumed ends with exit code 75.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from rhofast.cli import analysis, evaluate, ingest, train
from rhofast.cli.console import err, say
from rhofast.cli.plan import plan
from rhofast.errors import RhofastError

app = typer.Typer(
    name="rhofast",
    help="Self-supervised video pretraining through time: shards, training, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Entry point of the `rhofast` program."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except (RhofastError, OSError) as error:
        if debug:
            raise
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        where = f"rank {os.environ.get('RANK', '?')}: " if ranks > 1 else ""
        line = f"rhofast: error: {where}{_words(error)}"
        err.print(line, markup=False, highlight=False, soft_wrap=True, style="red")
        _tell_launcher(line)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("rhofast: interrupted", style="red")
        sys.exit(130)


def _words(error: RhofastError | OSError) -> str:
    if isinstance(error, RhofastError):
        return error.message + (f"\n  hint: {error.hint}" if error.hint else "")
    # A file or folder of the user's: a full disk, no permission, no such folder for the output.
    return f"{error.filename or 'system'}: {error.strerror or error}"


def _tell_launcher(line: str) -> None:
    """For torch's launcher, if that began this process: its summary, the end of a job's log, repeats the line."""
    if (file := os.environ.get("TORCHELASTIC_ERROR_FILE")) is None:
        return
    about = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
    with contextlib.suppress(OSError):
        Path(file).write_text(json.dumps({"message": about}))


def demo(
    target: Annotated[Path, typer.Option("--out", help="folder for videos, shards and the run")] = Path("runs/demo"),
    videos: Annotated[Path | None, typer.Option(help="your own class-per-folder videos (default: generated)")] = None,
    page: Annotated[Path, typer.Option("--config", help="page of the run")] = Path("configs/demo.toml"),
) -> None:
    """The main job on a small scale: videos, shards, pretraining, kNN, report; each step a command you could type."""
    from rhofast.cli.demo import demo_commands, verdict

    for command in demo_commands(target, videos, page):
        say(f"\n$ rhofast {shlex.join(command)}", style="bold")
        if code := app(command, standalone_mode=False):
            raise typer.Exit(code)
    say(f"\n{verdict(target)}")


app.command()(ingest.shard)
app.command()(ingest.recipes)
app.command()(ingest.verify)
app.command()(ingest.inspect)
app.command()(train.train)
app.command("import")(train.import_)
app.command()(train.export)
app.add_typer(evaluate.evaluate, name="eval")
app.command()(evaluate.embed)
app.add_typer(analysis.show, name="show")
app.command()(analysis.report)
app.command()(analysis.bench)
app.command()(plan)
app.command()(demo)
