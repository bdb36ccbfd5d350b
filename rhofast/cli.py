"""The command line: verbs that parse, call one function, and show. No logic.

Every deliberate error is one line and a hint on standard error, exit code 2; `--debug` shows the traceback. A run that
was stopped by a signal or by `max_hours` and can be resumed ends with exit code 75.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from rhofast.errors import ConfigError, RhofastError

app = typer.Typer(
    name="rhofast",
    help="Self-supervised video pretraining through time: shards, training, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
evaluate = typer.Typer(help="Evaluate a backbone on held-out shards.", no_args_is_help=True)
app.add_typer(evaluate, name="eval")

out = Console()
err = Console(stderr=True)

Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key, e.g. a.b=3")]
ShardsArgument = Annotated[Path, typer.Argument(metavar="SHARDS", help="folder of a shard set", show_default=False)]


def main() -> None:
    """Entry point of the `rhofast` program."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except (RhofastError, OSError) as error:
        if debug:
            raise
        if isinstance(error, RhofastError):
            message = error.message + (f"\n  hint: {error.hint}" if error.hint else "")
        else:  # a file or folder of the user's: a full disk, no permission, no such folder for the output
            message = f"{error.filename or 'system'}: {error.strerror or error}"
        err.print(f"rhofast: error: {message}", markup=False, highlight=False, soft_wrap=True, style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("rhofast: interrupted", style="red")
        sys.exit(130)


@app.command()
def shard(
    source: Annotated[Path, typer.Argument(help="folder of videos, list file, or what the recipe asks for")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="folder for the shards: new, empty, or begun")],
    recipe: Annotated[str | None, typer.Option(help="name or path of a recipe (default: by what SOURCE is)")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="option of the recipe")] = None,
    name: Annotated[str | None, typer.Option(help="name of the set (default: OUT's)")] = None,
    split: Annotated[str, typer.Option(help="written to dataset.json")] = "all",
    short_side: Annotated[int, typer.Option(help="pixels, a multiple of 16")] = 256,
    fps: Annotated[float | None, typer.Option(help="frames a second (default: each video's own)")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="keep only the beginning of longer videos")] = None,
    quality: Annotated[int, typer.Option(help="JPEG quality as ffmpeg's q: 2 (best) to 31")] = 3,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="videos a shard")] = 256,
    workers: Annotated[int | None, typer.Option(min=1, help="processes (default: one a core)")] = None,
    timeout: Annotated[float, typer.Option(help="seconds one video may take")] = 3600.0,
) -> None:
    """Turn videos into shards. The same command continues where it was stopped."""
    from rhofast.config import parse_section
    from rhofast.data.codecs import build_codec
    from rhofast.ingest.build import build_shards
    from rhofast.ingest.recipes import find_records, listed
    from rhofast.ingest.transcode import TranscodeSettings

    codec = build_codec({"name": "jpeg", "quality": quality})
    values = {"short_side": short_side, "fps": fps, "max_seconds": max_seconds, "timeout": timeout}
    settings = parse_section(TranscodeSettings, values, where="shard")
    found = find_records(source, recipe, option or [])
    with _progress(TextColumn("{task.fields[note]}")) as progress:
        listing = progress.add_task("finding videos", total=None, note="", visible=False)
        records, total = listed(found, lambda count: progress.update(listing, completed=count, visible=True))
        progress.remove_task(listing)
        task = progress.add_task("sharding", total=total, note="")

        def report(done: int, refused: int) -> None:
            progress.update(task, completed=done, note=f"{refused} refused" if refused else "")

        info = build_shards(
            records,
            target,
            name=name or target.resolve().name,
            split=split,
            codec=codec,
            settings=settings,
            samples_per_shard=samples_per_shard,
            workers=workers or os.cpu_count() or 1,
            on_progress=report,
        )
    refused = ", ".join(f"{count} {reason}" for reason, count in info.refused.items())
    _say(
        f"{target}: {info.num_samples} samples, {info.seconds / 3600:.2f} h, {_bytes(info.num_bytes)} in "
        f"{len(info.shards)} shards; refused: {refused or 'none'}"
    )
    if refused:
        _say(f"  what was refused and why: {target / 'refused.jsonl'}")


@app.command()
def verify(
    shards: ShardsArgument,
    deep: Annotated[bool, typer.Option("--deep", help="decode every picture too")] = False,
) -> None:
    """Check every promise of the shard format. Exit code 1 if one is broken."""
    from rhofast.data.index import open_shards
    from rhofast.ingest.verify import verify_shards

    opened = open_shards(shards, check_files=False)
    with _progress() as progress:
        task = progress.add_task("verifying", total=len(opened.info.shards))
        problems = 0
        for problem in verify_shards(
            opened, deep=deep, on_progress=lambda done, _: progress.update(task, completed=done)
        ):
            progress.console.print(str(problem), markup=False, highlight=False, soft_wrap=True, style="red")
            problems += 1
    if problems:
        err.print(f"{shards}: {problems} problems", highlight=False, style="red")
        raise typer.Exit(1)
    _say(f"{shards}: {len(opened)} samples in {len(opened.info.shards)} shards are as promised")


@app.command()
def inspect(shards: ShardsArgument, settings: Settings = None) -> None:
    """Print what is in a shard set, and what its clips cost to read (geometry: --set clips.num_clips=4 ...)."""
    from rhofast.config import load_config
    from rhofast.data.index import open_shards
    from rhofast.ingest.summary import summarize

    clips = load_config(None, settings or []).clips
    opened = open_shards(shards)
    summary = summarize(opened, clips)
    info = opened.info
    table = Table(
        title=f"{info.name} ({info.split}), codec {info.codec['name']}", show_header=False, title_justify="left"
    )
    table.add_column(style="bold")
    table.add_column()

    def top(counts: dict[Any, int], form: Callable[[Any], str]) -> str:
        counts = {value: count for value, count in counts.items() if count}
        shown = ", ".join(f"{form(value)}: {count}" for value, count in list(counts.items())[:8])
        return f"{shown}, ... ({len(counts)} in all)" if len(counts) > 8 else shown

    p10, median, p90 = summary.seconds
    geometry = f"{clips.num_clips} clips x {clips.num_frames} frames, stride {clips.frame_stride} at {clips.fps:g} fps"
    rows = {
        "samples": f"{summary.samples:,} in {summary.shards:,} shards",
        "duration": f"{summary.hours:.2f} h; a sample {median:.1f} s (10 %: {p10:.1f}, 90 %: {p90:.1f})",
        "frames": f"{summary.frames:,}, {summary.frame_bytes / 1000:.1f} kB each",
        "bytes": _bytes(summary.bytes),
        "sizes": top(summary.sizes, lambda size: f"{size[0]}x{size[1]}"),
        "frame rates": top(summary.rates, lambda rate: f"{rate:g}"),
        "labels": top({**summary.labels, "unlabeled": summary.unlabeled}, str),
        "refused": top(summary.refused, str) or "none",
        "clip geometry": geometry,
        "read a sample": _bytes(summary.clip_bytes),
        "read amplification": f"{summary.read_amplification:.2f} (bytes read / bytes of the frames used)",
        "decode amplification": f"{summary.decode_amplification:.2f} (frames decoded / frames used)",
    }
    for label, value in rows.items():
        table.add_row(label, escape(value))
    out.print(table)


@app.command()
def show(
    shards: ShardsArgument,
    target: Annotated[Path, typer.Option("--out", help="PNG file to write")] = Path("clips.png"),
    key: Annotated[list[str] | None, typer.Option(help="key of a sample (default: some spread over the set)")] = None,
    samples: Annotated[int, typer.Option(min=1, help="how many, without --key")] = 6,
    seed: Annotated[int, typer.Option(help="seed of the augmentation")] = 0,
    epoch: Annotated[int, typer.Option(min=0)] = 0,
    page: Annotated[Path | None, typer.Option("--config", help="take clips and augmentation from this page")] = None,
    settings: Settings = None,
) -> None:
    """Write a contact sheet of augmented clips, as training would see them."""
    from rhofast.config import load_config
    from rhofast.data.index import open_shards
    from rhofast.show import choose_samples, find_keys, show_clips

    if target.suffix.lower() != ".png":
        raise ConfigError(f"--out {target}: not a .png file")
    config = load_config(page, settings or [])
    opened = open_shards(shards)
    chosen = find_keys(opened, key) if key else choose_samples(opened, samples)
    sheet = show_clips(opened, clips=config.clips, augment=config.augment, samples=chosen, seed=seed, epoch=epoch)
    sheet.save(target)
    _say(f"{target}: {len(chosen)} samples, {sheet.width}x{sheet.height} pixels")


@app.command()
def train(
    page: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML page, see configs/")],
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run, or begin it")] = False,
) -> None:
    """Pretrain. Also under `accelerate launch -m rhofast train ...`."""
    from rhofast.config import load_config
    from rhofast.train import EXIT_RESUMABLE
    from rhofast.train import train as run_training

    config = load_config(page, settings or [])
    with _progress(TextColumn("{task.fields[note]}")) as progress:
        outcome = run_training(config, resume=resume, on_log=_live_line(progress))
    if not outcome.finished:
        err.print(
            f"{outcome.run}: saved at step {outcome.step} of {outcome.steps}; go on with --resume", highlight=False
        )
        raise typer.Exit(EXIT_RESUMABLE)
    if os.environ.get("RANK", "0") == "0":
        _say(f"{outcome.run}: {outcome.steps} steps done; look at it with: rhofast report {outcome.run}")


@evaluate.command()
def knn(
    checkpoint: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="run or checkpoint folder")],
    shards: ShardsArgument,
    bank: Annotated[Path | None, typer.Option("--train", help="labeled training shards (default: the run's)")] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="evaluate the same backbone untrained, too")] = False,
    target: Annotated[Path | None, typer.Option("--out", help="JSON file (default: knn.json in the run)")] = None,
    settings: Settings = None,
) -> None:
    """Weighted k-nearest neighbors on held-out shards: top-1, top-5, JSON."""
    from rhofast.evals.knn import evaluate_checkpoint

    with _progress() as progress:
        task = progress.add_task("features", total=None, visible=False)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, visible=True)

        result = evaluate_checkpoint(
            checkpoint, shards, bank=bank, untrained=untrained, overrides=settings or [], progress=report
        )
    path = target or result.run / "knn.json"
    path.write_text(json.dumps(result.to_json(), indent=1))
    out.print(_knn_table(result.to_json()))
    left_out = result.trained.left_out
    if left_out:
        count = f"{len(left_out)} samples cannot be read and were left out"
        err.print(f"{count}; the first: {left_out[0]}", style="red", markup=False, highlight=False, soft_wrap=True)
    _say(f"written: {path}")


@app.command()
def report(runs: Annotated[Path, typer.Argument(metavar="RUN", help="run folder")]) -> None:
    """Write RUN/report.html: plots and pictures of a run, in one file."""
    from rhofast.report import write_report

    _say(f"written: {write_report(runs)}")


@app.command()
def demo(
    target: Annotated[Path, typer.Option("--out", help="folder for videos, shards and the run")] = Path("runs/demo"),
    videos: Annotated[Path | None, typer.Option(help="your own class-per-folder videos (default: generated)")] = None,
    page: Annotated[Path, typer.Option("--config", help="page of the run")] = Path("configs/demo.toml"),
) -> None:
    """The main job on a small scale: videos, shards, pretraining, kNN, report; each step a command you could type."""
    from rhofast.demo import demo_commands, verdict

    for command in demo_commands(target, videos, page):
        _say(f"\n$ rhofast {shlex.join(command)}", style="bold")
        if code := app(command, standalone_mode=False):
            raise typer.Exit(code)
    _say(f"\n{verdict(target)}")


def _say(text: str, style: str | None = None) -> None:
    """A line of plain text, however wide the terminal."""
    out.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _progress(*more: TextColumn) -> Progress:
    """A progress bar on standard error; plain lines where that is no terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *more,
        console=err,
    )


def _live_line(progress: Progress) -> Callable[[dict[str, Any]], None]:
    """What `train` calls with each line of metrics: moves the bar and shows the numbers that matter."""
    task = progress.add_task("training", total=None, note="", visible=False)
    shown: dict[str, str] = {}

    def on_log(line: dict[str, Any]) -> None:
        if line["kind"] == "step":
            shown["loss"] = f"loss {line['loss']:.3f}"
            shown["rate"] = f"{line['clips_per_second']:.0f} clips/s"
            shown["wait"] = f"data wait {line['data_wait_share']:.1%}"
        elif line["kind"] == "knn":
            shown["knn"] = f"kNN {line['top1']:.1%}"
        progress.update(task, completed=line["step"], total=line["steps"], note="  ".join(shown.values()), visible=True)

    return on_log


def _knn_table(result: dict[str, Any]) -> Table:
    table = Table(title="kNN on held-out videos", title_justify="left")
    for column in ("backbone", "top-1", "top-5", "videos"):
        table.add_column(column, justify="left" if column == "backbone" else "right")
    for name in ("trained", "untrained"):
        if result.get(name) is not None:
            one = result[name]
            table.add_row(name, f"{one['top1']:.1%}", f"{one['top5']:.1%}", str(one["samples"]))
    table.add_row("chance", f"{result['chance']:.1%}", "", "")
    return table


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.1f} PB"
