"""The commands that look at runs and data: `show clips`, `show neighbors`, `bench`, `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from rhofast.cli.console import is_main_process, out, print_left_out, print_line, progress_bar, progress_bars
from rhofast.cli.options import (
    DATA,
    OUTPUT,
    RUN,
    CheckpointArgument,
    ConfigArgument,
    ConfigOption,
    Overrides,
    check_png,
    given,
)
from rhofast.cli.tables import bench_table, count_text
from rhofast.errors import ConfigError
from rhofast.storage.files import check_writable, write_atomically

Benchmark = Literal["loader", "step", "both", "headspace"]


class _ClipsByDefault(TyperGroup):
    """A group in which `show X` is `show clips X`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["clips", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


show = typer.Typer(
    cls=_ClipsByDefault,
    help="Draw augmented clips, or nearest videos. `rhofast show X` is `rhofast show clips X`.",
    no_args_is_help=True,
)
OF_RUN, OF_SHARDS = "Batch of a run", "Samples of a shard set"


@show.command()
def clips(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SHARDS_OR_RUN", help="Folder or address of a shard set, or folder of a run.", show_default=False
        ),
    ],
    step: Annotated[
        int | None,
        typer.Option(help="Optimizer step, as in metrics.jsonl; step 1 has the first batch.", rich_help_panel=OF_RUN),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Rank whose part of the batch is drawn. Default: 0.", rich_help_panel=OF_RUN)
    ] = None,
    world_size: Annotated[
        int | None,
        typer.Option(min=1, help="Number of ranks of the batch. Default: as in that step.", rich_help_panel=OF_RUN),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="Key of a sample. Repeatable. Default: samples spread over the set.", rich_help_panel=OF_SHARDS
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the augmentation. Default: 0.", rich_help_panel=OF_SHARDS)
    ] = None,
    epoch: Annotated[
        int | None, typer.Option(min=0, help="Epoch of the augmentation. Default: 0.", rich_help_panel=OF_SHARDS)
    ] = None,
    config: ConfigOption = None,
    overrides: Overrides = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Number of samples to draw, without --key.", rich_help_panel=OUTPUT)
    ] = 8,
    target: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE",
            help="File to write: .png for a sheet; .webp, .gif or .mp4 for clips that play.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("clips.png"),
) -> None:
    """Draw clips as training sees them.

    Of a shard set: augmented clips of chosen samples. Of a run: the batch that a rank consumed in a step, made again
    from its address. If a run's shards have moved: --set data.train=FOLDER.
    """
    from rhofast.analysis.rendering import check_suffix, write_pictures
    from rhofast.analysis.replay import augmented_clips, is_run, replay_batch
    from rhofast.config.load import load_config
    from rhofast.data.format.dataset import choose_samples
    from rhofast.data.format.selection import find_samples
    from rhofast.data.sources import open_shards

    check_suffix(target)
    check_writable(target)
    run = Path(source)
    if is_run(run):
        _refuse(f"{source} is a run", given(key=key, seed=seed, epoch=epoch, config=config))
        if step is None:
            raise ConfigError(f"{source}: a run has a batch for every step", hint="say which: --step 100")
        shown = replay_batch(
            run, step=step, rank=rank or 0, world_size=world_size, count=samples, overrides=overrides or []
        )
    else:
        _refuse(f"{source} is not a run", given(step=step, rank=rank, world_size=world_size))
        loaded = load_config(config, overrides or [])
        opened = open_shards(source, data=loaded.data)
        with progress_bars("finding keys") as (on_read,):
            chosen = find_samples(opened, key, on_read=on_read) if key else choose_samples(opened, samples)
        shown = augmented_clips(
            opened, clips=loaded.clips, augment=loaded.augment, samples=chosen, seed=seed or 0, epoch=epoch or 0
        )
    drawn, named = len(shown.videos), len(shown.samples)  # some of a batch; those chosen of a set
    count = count_text(drawn, "sample") if drawn == named else f"{drawn} of {named} samples"
    width, height = write_pictures(target, shown.videos, heading=(*shown.heading, count), fps=shown.fps)
    print_line(f"{': '.join(shown.heading)}, samples {' '.join(map(str, shown.samples))}")
    for note in shown.notes:
        print_line(note)
    print_line(f"{target}: {count}, {width}x{height} pixels")


def bench(
    what: Annotated[
        Benchmark,
        typer.Argument(
            metavar="WHAT",
            help="loader, step, both, or headspace: what an infinitely fast loader would gain.",
            show_default=False,
        ),
    ],
    config: ConfigArgument,
    overrides: Overrides = None,
    batches: Annotated[int, typer.Option(min=1, help="Timed batches per round.", rich_help_panel=RUN)] = 20,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds per source of batches; medians are reported.", rich_help_panel=RUN)
    ] = 5,
    target: Annotated[
        Path | None, typer.Option("--out", metavar="JSON", help="File for all numbers.", rich_help_panel=OUTPUT)
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="File for a plot.", rich_help_panel=OUTPUT)] = None,
) -> None:
    """Measure how fast training can go on your shards, and what limits it."""
    from rhofast.analysis.bench import bench as measure
    from rhofast.analysis.bench_report import draw
    from rhofast.config.load import load_config

    if plot is not None:
        check_png("--plot", plot)
    loaded = load_config(config, overrides or [])
    with progress_bar() as progress:
        task = progress.add_task("warming up", total=None)

        def on_measurement(done: int, total: int) -> None:
            progress.update(task, description="measuring", completed=done, total=total)

        result = measure(loaded, what, batches=batches, rounds=rounds, on_measurement=on_measurement)
    if not is_main_process():
        return
    out.print(bench_table(result))
    if target is not None:
        write_atomically(target, json.dumps(result, indent=1))
        print_line(f"Wrote {target}")
    if plot is not None:
        draw(result, plot)
        print_line(f"Wrote {plot}")


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are compared.", show_default=False)
    ],
    target: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="HTML",
            help="File to write. Default: RUN/report.html, or comparison.html beside the runs.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Write plots and pictures of one run, or a comparison of several, as one HTML file."""
    from rhofast.analysis.report import write_report

    print_line(f"Wrote {write_report(runs, target)}")


def _refuse(why: str, options: dict[str, Any]) -> None:
    """Raise ConfigError if there are options that do not apply."""
    for name in options:
        raise ConfigError(f"--{name.replace('_', '-')}: {why}", hint="see: rhofast show --help")


@show.command("neighbours", hidden=True)
@show.command()
def neighbors(
    checkpoint: CheckpointArgument,
    test: Annotated[
        str | None,
        typer.Option("--test", metavar="SHARDS", help="Queries. Default: the bank.", rich_help_panel=DATA),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            "--train", metavar="SHARDS", help="Bank that is searched. Default: the run's shards.", rich_help_panel=DATA
        ),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="Key of a query. Repeatable. Default: queries spread over the set.", rich_help_panel=DATA),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Number of queries, without --key.", rich_help_panel=OUTPUT)] = 8,
    count: Annotated[int, typer.Option(min=1, help="Neighbors per query.", rich_help_panel=OUTPUT)] = 5,
    target: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="File to write: .png, .webp, .gif or .mp4.", rich_help_panel=OUTPUT),
    ] = Path("neighbors.png"),
    overrides: Overrides = None,
) -> None:
    """Draw videos beside their nearest neighbors in feature space."""
    from rhofast.analysis.neighbors import draw_neighbors, open_bank
    from rhofast.analysis.rendering import check_suffix

    check_suffix(target)
    check_writable(target)
    with progress_bars("finding keys") as (on_read,):
        model, bank, queries, chosen = open_bank(
            checkpoint,
            bank=train,
            queries=test,
            keys=key or [],
            samples=samples,
            overrides=overrides or [],
            on_read=on_read,
        )
    with progress_bars("features") as (progress,):
        drawn = draw_neighbors(model, bank, queries, chosen, target, count=count, progress=progress)
    if is_main_process():
        print_left_out(drawn.left_out)
        queried = "1 query" if len(drawn.near) == 1 else f"{len(drawn.near)} queries"
        most = max((len(near.neighbors) for near in drawn.near), default=0)
        few = "" if most == count else "; no more have another source"
        print_line(f"{target}: {queried}, the {most} nearest of each{few}; {model.origin}")
