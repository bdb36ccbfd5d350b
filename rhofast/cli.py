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
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from rhofast.cli_evals import embed, evaluate, neighbors
from rhofast.cli_plan import plan
from rhofast.console import (
    ShardProgress,
    bench_table,
    err,
    estimate_table,
    out,
    progress_bar,
    say,
    set_table,
    summary_table,
    transfer_table,
)
from rhofast.errors import ConfigError, RhofastError
from rhofast.files import as_path
from rhofast.live import TrainingView

app = typer.Typer(
    name="rhofast",
    help="Self-supervised video pretraining through time: shards, training, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(evaluate, name="eval")
app.command()(plan)
app.command()(embed)

Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key, e.g. a.b=3")]
ShardsArgument = Annotated[Path, typer.Argument(metavar="SHARDS", help="folder of a shard set", show_default=False)]
SourceArgument = Annotated[
    str, typer.Argument(metavar="SHARDS", help="folder or address of a shard set", show_default=False)
]


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


Executors = Literal["processes", "ray"]
Benches = Literal["loader", "step", "both", "headspace"]
Formats = Literal["safetensors", "pyslowfast"]


@app.command()
def shard(
    source: Annotated[Path, typer.Argument(parser=as_path, help="folder of videos, list, or what the recipe asks for")],
    target: Annotated[Path, typer.Argument(parser=as_path, metavar="OUT", help="folder for the shards: new or begun")],
    recipe: Annotated[str | None, typer.Option(help="name or path of a recipe (default: by what SOURCE is)")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="option of the recipe")] = None,
    name: Annotated[str | None, typer.Option(help="name of the set (default: OUT's)")] = None,
    split: Annotated[str, typer.Option(help="written to dataset.json")] = "all",
    codec: Annotated[list[str] | None, typer.Option(help="jpeg (default), h264, hevc or copy")] = None,
    quality: Annotated[int | None, typer.Option(help="jpeg: ffmpeg's q, 2 (best) to 31; h264, hevc: CRF, 0-51")] = None,
    gop: Annotated[int | None, typer.Option(help="h264, hevc: frames a group (default: 16)")] = None,
    preset: Annotated[str | None, typer.Option(help="h264, hevc: the encoder's preset (default: medium)")] = None,
    short_side: Annotated[int | None, typer.Option(help="pixels, a multiple of 16 (default: 256)")] = None,
    fps: Annotated[float | None, typer.Option(help="frames a second (default: each video's own)")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="keep only the beginning of longer videos")] = None,
    min_duration: Annotated[float | None, typer.Option(help="refuse shorter videos (seconds)")] = None,
    max_duration: Annotated[float | None, typer.Option(help="refuse longer videos (seconds)")] = None,
    timeout: Annotated[float, typer.Option(help="seconds one video may take")] = 3600.0,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="videos a shard")] = 256,
    workers: Annotated[int | None, typer.Option(min=1, help="videos at once (default: one a core)")] = None,
    executor: Annotated[Executors, typer.Option(help="where the work is done")] = "processes",
    ray_address: Annotated[str | None, typer.Option(help="cluster (default: RAY_ADDRESS, or one of its own)")] = None,
    task: Annotated[str | None, typer.Option(metavar="I/N", help="make part I of N only; without: the rest")] = None,
    append: Annotated[bool, typer.Option("--append", help="add the videos that the set in OUT lacks")] = False,
    dry_run: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="try N videos, and tell what to expect")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="JSON", help="with --dry-run: write the figures, too")] = None,
    settings: Settings = None,
) -> None:
    """Turn videos into shards. The same command continues where it was stopped."""
    from rhofast.config.load import load_config
    from rhofast.config.section import parse_section
    from rhofast.data.codecs import build_codecs
    from rhofast.data.index import open_folder
    from rhofast.ingest.build import BuildSettings, build_shards, parse_part, stored_keys
    from rhofast.ingest.estimate import estimate
    from rhofast.ingest.executors import LocalProcesses, RayCluster
    from rhofast.ingest.listing import Listing
    from rhofast.ingest.recipes import find_records, published_count
    from rhofast.ingest.transcode import TranscodeSettings

    codecs = build_codecs(codec or ["jpeg"], _given(quality=quality, gop=gop, preset=preset))
    if len(codecs) > 1 and dry_run is None:
        raise ConfigError("--codec is given more than once", hint="one set has one codec; --dry-run N compares several")
    changes = _given(short_side=short_side, fps=fps, max_seconds=max_seconds)
    if changes and dry_run is None and codecs[0].name == "copy":
        raise ConfigError(f"--{next(iter(changes)).replace('_', '-')}: codec copy keeps every video as it is")
    limits = _given(min_duration=min_duration, max_duration=max_duration, timeout=timeout)
    transcode = parse_section(TranscodeSettings, {**changes, **limits}, where="shard")
    part = None if task is None else parse_part(task)
    hands = workers or os.cpu_count() or 1
    existing = open_folder(target) if append else None
    stored, classes = (stored_keys(existing), existing.info.classes) if existing is not None else ((), ())
    begun = time.monotonic()
    with ShardProgress() as progress:
        found = find_records(source, recipe, option or [])
        with Listing(found, stored=stored, classes=classes, on_count=progress.on_count) as listing:
            progress.begin(listing.listed, len(listing))
            if dry_run is not None:
                clips = load_config(None, settings or []).clips
                expected = estimate(
                    listing, codecs, transcode, clips, samples=dry_run, workers=hands, on_progress=progress.on_tried
                )
            else:
                info = build_shards(
                    listing,
                    target,
                    BuildSettings(
                        name=name or target.resolve().name,
                        split=split,
                        codec=codecs[0],
                        transcode=transcode,
                        samples_per_shard=samples_per_shard,
                    ),
                    RayCluster(address=ray_address, workers=workers) if executor == "ray" else LocalProcesses(hands),
                    part=part,
                    append_to=existing,
                    on_progress=progress.on_videos,
                )
    if dry_run is not None:
        out.print(estimate_table(expected))
        if report is not None:
            report.write_text(json.dumps(expected.to_json(), indent=1))
            say(f"written: {report}")
    elif info is None:
        say(f"{target}: part {task} is done; when all are: the same command without --task completes the set")
    else:
        count = published_count(source, recipe, option or [])
        seconds = time.monotonic() - begun
        out.print(set_table(target, info, listed=progress.listed, as_published=count, seconds=seconds))


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="recipe to describe (default: list all)")] = None) -> None:
    """List the recipes for data sets, or tell how to use one."""
    from rhofast.ingest.recipes import describe_recipe, recipe_names

    if name is not None:
        say(describe_recipe(name))
        return
    for one in recipe_names():
        say(describe_recipe(one).partition("\n")[0])


@app.command()
def verify(
    shards: ShardsArgument,
    deep: Annotated[bool, typer.Option("--deep", help="decode everything too, as training does")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="processes (default: one a core)")] = None,
) -> None:
    """Check every promise of the shard format. Exit code 1 if one is broken."""
    from rhofast.data.index import open_folder
    from rhofast.ingest.verify import verify_shards

    opened = open_folder(shards, check_files=False)
    with progress_bar() as progress:
        task = progress.add_task("verifying", total=len(opened))
        problems = 0
        for problem in verify_shards(
            opened,
            deep=deep,
            workers=workers or os.cpu_count() or 1,
            on_progress=lambda done, _: progress.update(task, completed=done),
        ):
            progress.console.print(str(problem), markup=False, highlight=False, soft_wrap=True, style="red")
            problems += 1
    if problems:
        err.print(f"{shards}: {problems} problems", highlight=False, style="red")
        raise typer.Exit(1)
    say(f"{shards}: {len(opened)} samples in {len(opened.info.shards)} shards are as promised")


@app.command()
def inspect(
    shards: SourceArgument,
    target: Annotated[Path | None, typer.Option("--out", help="PNG file for histograms")] = None,
    settings: Settings = None,
) -> None:
    """Print what is in a shard set, and what its clips cost to read (geometry: --set clips.num_clips=4 ...)."""
    from rhofast.config.load import load_config
    from rhofast.data.remote import open_shards
    from rhofast.ingest.summary import draw_summary, summarize

    if target is not None:
        _check_png(target)
    clips = load_config(None, settings or []).clips
    opened = open_shards(shards)
    summary = summarize(opened, clips)
    out.print(summary_table(opened.info, summary, clips))
    if target is not None:
        draw_summary(summary, target)
        say(f"written: {target}")


class _ClipsUnlessSaid(TyperGroup):
    """`show X` is `show clips X`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["clips", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


show = typer.Typer(
    cls=_ClipsUnlessSaid, help="Draw clips as training sees them, or nearest videos.", no_args_is_help=True
)
app.add_typer(show, name="show")
show.command()(neighbors)
show.command("neighbours", hidden=True)(neighbors)


@show.command()
def clips(
    source: Annotated[
        str, typer.Argument(metavar="SHARDS_OR_RUN", help="folder or address of a shard set, or folder of a run")
    ],
    target: Annotated[
        Path, typer.Option("--out", help="file to write: .png for a sheet; .gif or .mp4 for clips that play")
    ] = Path("clips.png"),
    samples: Annotated[int, typer.Option(min=1, help="how many samples, without --key")] = 8,
    step: Annotated[
        int | None, typer.Option(help="of a run: optimizer step, as metrics.jsonl counts; step 1 has the first batch")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="of a run: whose part of the batch (default: 0)")] = None,
    world_size: Annotated[
        int | None, typer.Option(min=1, help="of a run: ranks that shared the batch (default: as it was in that step)")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="of shards: key of a sample (default: some spread over the set)")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="of shards: seed of the augmentation (default: 0)")] = None,
    epoch: Annotated[int | None, typer.Option(min=0, help="of shards: epoch of the plan (default: 0)")] = None,
    page: Annotated[
        Path | None, typer.Option("--config", help="of shards: take clips and augmentation from this page")
    ] = None,
    settings: Settings = None,
) -> None:
    """Draw augmented clips as training sees them: of samples of a shard set, or the batch of a RUN that --rank consumed
    in optimizer step --step, made again from its address. A run's shards may have moved: --set data.train=...

    `rhofast show X` is `rhofast show clips X`.
    """
    from rhofast.config.load import load_config
    from rhofast.data.remote import open_shards
    from rhofast.pictures import check_suffix, write_pictures
    from rhofast.show import choose_samples, find_keys, is_run, replay_batch, show_clips

    check_suffix(target)
    run = Path(source)
    if is_run(run):
        _refuse(f"{source} is a run", _given(key=key, seed=seed, epoch=epoch, config=page))
        if step is None:
            raise ConfigError(f"{source}: a run has a batch for every step", hint="say which: --step 100")
        shown = replay_batch(
            run, step=step, rank=rank or 0, world_size=world_size, count=samples, overrides=settings or []
        )
    else:
        _refuse(f"{source} is not a run", _given(step=step, rank=rank, world_size=world_size))
        config = load_config(page, settings or [])
        opened = open_shards(source)
        chosen = find_keys(opened, key) if key else choose_samples(opened, samples)
        shown = show_clips(
            opened, clips=config.clips, augment=config.augment, samples=chosen, seed=seed or 0, epoch=epoch or 0
        )
    count = f"{len(shown.groups)} of {len(shown.samples)} samples"
    width, height = write_pictures(target, shown.groups, heading=(*shown.heading, count), fps=shown.fps)
    say(f"{': '.join(shown.heading)}, samples {' '.join(map(str, shown.samples))}")
    for note in shown.notes:
        say(note)
    say(f"{target}: {count}, {width}x{height} pixels")


@app.command()
def train(
    page: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML page, see configs/")],
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run, or begin it")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="continue even with settings that make it another experiment")
    ] = False,
) -> None:
    """Pretrain. Also under `accelerate launch -m rhofast train ...`."""
    from rhofast.config.load import load_config
    from rhofast.train import EXIT_RESUMABLE
    from rhofast.train import train as run_training

    config = load_config(page, settings or [])
    with TrainingView(err) as view:
        outcome = run_training(config, resume=resume, accept_changes=accept_changes, on_log=view.on_log)
    first = os.environ.get("RANK", "0") == "0"
    if first and outcome.finished:
        look = f"rhofast report {shlex.quote(str(outcome.run))}"
        say(f"{outcome.run}: {outcome.step} steps done; look at it with: {look}")
    elif first:
        saved = f"{outcome.run}: saved at step {outcome.step} of {outcome.steps}; go on with --resume"
        err.print(saved, markup=False, highlight=False, soft_wrap=True)
    if not outcome.finished:
        raise typer.Exit(EXIT_RESUMABLE)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="run or checkpoint folder")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="file to write: .safetensors, or .pyth of PySlowFast")],
    form: Annotated[Formats, typer.Option("--format", help="whose file it is to be")] = "safetensors",
) -> None:
    """Write the trained backbone as one file."""
    from rhofast.checkpoint import find_checkpoint, load_checkpoint
    from rhofast.export import export_checkpoint

    folder = find_checkpoint(checkpoint)
    run = checkpoint if folder != checkpoint else folder.parent.parent
    out.print(transfer_table(export_checkpoint(load_checkpoint(folder), target, format=form, run=run)))


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="official PySlowFast .pyth, or torchvision .pth")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="file to write: .safetensors")],
    backbone: Annotated[str, typer.Option(help="name of the backbone that it holds")],
    settings: Settings = None,
) -> None:
    """Turn foreign weights into a file that rhofast.load_backbone opens."""
    from rhofast.config.load import load_config
    from rhofast.export import import_weights

    section = load_config(None, [f"backbone.name={backbone}", *(settings or [])]).backbone
    out.print(transfer_table(import_weights(source, target, backbone=section.name, options=section.options)))


@app.command()
def bench(
    what: Annotated[Benches, typer.Argument(help="loader or step alone, both, or what a faster loader gains")],
    page: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML page, see configs/")],
    settings: Settings = None,
    batches: Annotated[int, typer.Option(min=1, help="timed batches of a round")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="of each source of batches; medians are told")] = 5,
    target: Annotated[Path | None, typer.Option("--out", metavar="JSON", help="write every number, too")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="write a picture, too")] = None,
) -> None:
    """Measure on your own shards how fast training can go, and what holds it up. Also under `accelerate launch`."""
    from rhofast.bench import bench as measure
    from rhofast.config.load import load_config
    from rhofast.turns import draw

    if plot is not None and plot.suffix.lower() != ".png":
        raise ConfigError(f"--plot {plot}: not a .png file")
    config = load_config(page, settings or [])
    with progress_bar() as progress:
        task = progress.add_task("warming up", total=None)

        def on_turn(done: int, total: int) -> None:
            progress.update(task, description="measuring", completed=done, total=total)

        result = measure(config, what, batches=batches, rounds=rounds, on_turn=on_turn)
    if os.environ.get("RANK", "0") != "0":
        return
    out.print(bench_table(result))
    if target is not None:
        target.write_text(json.dumps(result, indent=1))
        say(f"written: {target}")
    if plot is not None:
        draw(result, plot)
        say(f"written: {plot}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folder; several are compared")],
    target: Annotated[
        Path | None, typer.Option("--out", help="HTML file (default: RUN/report.html, or comparison.html beside RUN)")
    ] = None,
) -> None:
    """Write plots and pictures of a run, or of several side by side, into one HTML file."""
    from rhofast.report import write_report

    say(f"written: {write_report(runs, target)}")


@app.command()
def demo(
    target: Annotated[Path, typer.Option("--out", help="folder for videos, shards and the run")] = Path("runs/demo"),
    videos: Annotated[Path | None, typer.Option(help="your own class-per-folder videos (default: generated)")] = None,
    page: Annotated[Path, typer.Option("--config", help="page of the run")] = Path("configs/demo.toml"),
) -> None:
    """The main job on a small scale: videos, shards, pretraining, kNN, report; each step a command you could type."""
    from rhofast.demo import demo_commands, verdict

    for command in demo_commands(target, videos, page):
        say(f"\n$ rhofast {shlex.join(command)}", style="bold")
        if code := app(command, standalone_mode=False):
            raise typer.Exit(code)
    say(f"\n{verdict(target)}")


def _check_png(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--out {path}: not a .png file")


def _refuse(why: str, options: dict[str, Any]) -> None:
    """Options that were given for something else."""
    for name in options:
        raise ConfigError(f"--{name.replace('_', '-')}: {why}", hint="see: rhofast show --help")


def _given(**options: Any) -> dict[str, Any]:
    """Those options that the user gave."""
    return {name: value for name, value in options.items() if value is not None}
