"""The program `rhofast`: its commands and how errors are reported.

Every deliberate error is one line and a hint on standard error, with exit code 2; `--debug` prints the traceback. A run
that was stopped by a signal or by `train.max_hours` and can be resumed ends with exit code 75.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Annotated

import typer

import rhofast
from rhofast.cli import analysis, evaluate, ingest, inspection, train
from rhofast.cli.boxes import boxes
from rhofast.cli.console import err, out, print_line, print_lines, print_problem, told_of_outages
from rhofast.cli.options import examples
from rhofast.cli.plan import plan
from rhofast.display.text import LINE, plain_words, printable
from rhofast.errors import EXIT_RESUMABLE, ConfigError, MachineError, RhofastError
from rhofast.storage.address import redacted

_FAREWELL_S = 5.0  # for threads to end that a command has left behind

app = typer.Typer(
    name="rhofast",
    help="Pretrain video backbones on rho clips per video: shards, training, evaluation.",
    epilog="Every command takes --debug: print the traceback of an error. Documentation: "
    "https://github.com/rhofast/rhofast",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rhofast {rhofast.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the options of the program itself."""


def main() -> None:
    """Entry point of the `rhofast` program."""
    code = 1
    try:
        _run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        raise
    except Exception:  # noqa: BLE001 - a fault of the program: Python would print it after the process has left
        traceback.print_exc()
        sys.exit(code)
    finally:
        _leave(code)


def _leave(code: int) -> None:
    """Write out what was printed; end the process here if a thread hangs, for which Python would wait for ever."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError):  # its reader is gone; Python would try again, and complain
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - for the process's life
    end = time.monotonic() + _FAREWELL_S
    for thread in threading.enumerate():
        if thread.name.startswith("rhofast-"):  # Python waits for the threads of pools even if they are daemons
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                os._exit(code)


def _run() -> None:
    """Run the command that the command line names; raises SystemExit."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without UTF-8 shows escapes
            stream.reconfigure(errors="backslashreplace")
    try:
        with told_of_outages():
            sys.exit(app(standalone_mode=False))
    except KeyboardInterrupt:
        err.print("rhofast: interrupted", style="red")
        sys.exit(130)
    except Exception as error:
        if isinstance(error, UnicodeEncodeError) and not debug:
            # A path with bytes that are not UTF-8, which Arrow, FFmpeg or JSON cannot hold.
            error = ConfigError(f"{error.object}: the name is not UTF-8", hint="rename the file or folder")
        if debug or not isinstance(error, RhofastError | OSError | MemoryError):
            _exit_on_usage_error(error)
            raise
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        where = f"rank {os.environ.get('RANK', '?')}: " if ranks > 1 else ""
        line = f"rhofast: error: {where}{redacted(_error_text(error))}"
        print_problem(line)
        _report_to_launcher(line)
        sys.exit(EXIT_RESUMABLE if isinstance(error, MachineError) else 2)


def _exit_on_usage_error(error: Exception) -> None:
    """Print one line for a command line that cannot be parsed, and exit with 2; return for any other error."""
    message = getattr(error, "format_message", None)  # Typer has exceptions of Click, or its own copies of them
    if message is None:
        return
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(message())
    else:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "rhofast"
        words = " ".join(message().split())  # Click breaks lines between the values of a choice
        about, colon, rest = words.partition(": ")
        words = f"{about}{colon}{plain_words(rest)}" if about.startswith("Invalid value") else words
        line = f"rhofast: error: {printable(redacted(words), LINE).rstrip('.')}\n  hint: {command} --help"
        print_problem(line)
    sys.exit(2)


def _error_text(error: RhofastError | OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return printable(f"out of memory{f': {error}' if str(error) else ''}", LINE)
    if isinstance(error, RhofastError):
        return error.message + (f"\n  hint: {error.hint}" if error.hint else "")
    # A file or folder of the user: a full disk, no permission, no such folder for the output.
    name = error.filename or "system"
    return printable(f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {error.strerror or error}", LINE)


def _report_to_launcher(line: str) -> None:
    """Pass the line to torch's launcher, if it began this process: its summary ends a job's log with it."""
    if (file := os.environ.get("TORCHELASTIC_ERROR_FILE")) is None:
        return
    about = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
    with contextlib.suppress(OSError):
        Path(file).write_text(json.dumps({"message": about}))


def demo(
    target: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Folder for videos, shards and the run.")
    ] = Path("runs/demo"),
    videos: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Your own videos, in one folder per class. Default: generated videos."),
    ] = None,
    config: Annotated[str, typer.Option(metavar="CONFIG", help="TOML file, or name of a packaged config.")] = "demo",
) -> None:
    """Run the whole job on a small scale: videos, shards, pretraining, kNN, report.

    Each step is printed in words, and as a command that you could type.
    """
    from rhofast.cli.demo import demo_commands, summarize_demo

    for number, (step, command) in enumerate(demo_commands(target, videos, config), start=1):
        out.print()
        print_line(f"{number}. {step}:", style="bold green")
        print_line(f"$ rhofast {shlex.join(command)}", style="bold")
        if code := app(command, standalone_mode=False):
            raise typer.Exit(code)
    print_lines(f"\n{summarize_demo(target)}")


DATA, TRAINING, EVALUATION, ANALYSIS = "Data", "Training", "Evaluation", "Analysis and planning"

app.command(
    rich_help_panel=DATA,
    epilog=examples(
        "rhofast shard videos shards/mine",
        "rhofast shard videos shards/mine --dry-run 16 --codec jpeg --codec h264",
        "rhofast shard kinetics400 s3://bucket/k400 --recipe kinetics --codec h264",
    ),
)(ingest.shard)
app.command(rich_help_panel=DATA, epilog=examples("rhofast recipes", "rhofast recipes kinetics"))(ingest.recipes)
app.command(rich_help_panel=DATA, epilog=examples("rhofast verify shards/mine --deep"))(inspection.verify)
app.command(
    rich_help_panel=DATA,
    epilog=examples("rhofast inspect shards/mine --set clips.num_clips=4 --out inspect.png"),
)(inspection.inspect)
app.command(
    rich_help_panel=DATA,
    epilog=examples(
        "rhofast boxes shards/ava_val --truth ava_val_v2.2.csv --detections ava_detection_val_boxes_and_labels.csv "
        "--excluded ava_val_excluded_timestamps_v2.2.csv --classes ava_action_list_v2.2_for_activitynet_2019.pbtxt",
    ),
)(boxes)
app.command(
    rich_help_panel=TRAINING,
    epilog=examples(
        "rhofast train demo --set data.train=shards/mine --set name=first",
        "rhofast train demo --set data.train=shards/mine --set name=first --resume",
        "accelerate launch -m rhofast train byol_slow_r50_8x8_rho2 --set data.train=...",
    ),
)(train.train)
app.add_typer(train.configs, name="configs", rich_help_panel=TRAINING)
app.command(rich_help_panel=TRAINING, epilog=examples("rhofast demo", "rhofast demo --videos my_videos"))(demo)
app.command(rich_help_panel=TRAINING, epilog=examples("rhofast export runs/first first.safetensors"))(train.export)
app.command(
    "import",
    rich_help_panel=TRAINING,
    epilog=examples("rhofast import official.pyth slow.safetensors --backbone slow_r50"),
)(train.import_)
app.add_typer(evaluate.evaluate, name="eval", rich_help_panel=EVALUATION)
app.command(rich_help_panel=EVALUATION, epilog=examples("rhofast embed runs/first shards/test features.parquet"))(
    evaluate.embed
)
app.add_typer(analysis.show, name="show", rich_help_panel=ANALYSIS)
app.command(
    rich_help_panel=ANALYSIS, epilog=examples("rhofast report runs/first", "rhofast report runs/first runs/second")
)(analysis.report)
app.command(
    rich_help_panel=ANALYSIS,
    epilog=examples("rhofast bench headspace demo --set data.train=shards/mine --out bench.json"),
)(analysis.bench)
app.command(
    rich_help_panel=ANALYSIS,
    epilog=examples(
        "rhofast plan --videos 65e6 --mean-seconds 35 --gpus 512", "rhofast plan --gpus 64 --bench bench.json"
    ),
)(plan)
