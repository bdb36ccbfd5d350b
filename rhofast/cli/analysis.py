"""The commands that look at runs and data: `show`, `bench`, `report`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from rhofast.cli.console import is_main_process, out, print_left_out, progress_bar, progress_bars, say
from rhofast.cli.evaluate import EvalModel
from rhofast.cli.options import Settings, given
from rhofast.cli.tables import (
    bench_table,
)
from rhofast.errors import ConfigError
from rhofast.storage.files import check_writable

Benches = Literal["loader", "step", "both", "headspace"]


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
    from rhofast.analysis.rendering import check_suffix, write_pictures
    from rhofast.analysis.replay import augmented_clips, is_run, replay_batch
    from rhofast.config.load import load_config
    from rhofast.data.format.dataset import choose_samples, find_keys
    from rhofast.data.sources import open_shards

    check_suffix(target)
    run = Path(source)
    if is_run(run):
        _refuse(f"{source} is a run", given(key=key, seed=seed, epoch=epoch, config=page))
        if step is None:
            raise ConfigError(f"{source}: a run has a batch for every step", hint="say which: --step 100")
        shown = replay_batch(
            run, step=step, rank=rank or 0, world_size=world_size, count=samples, overrides=settings or []
        )
    else:
        _refuse(f"{source} is not a run", given(step=step, rank=rank, world_size=world_size))
        config = load_config(page, settings or [])
        opened = open_shards(source)
        chosen = find_keys(opened, key) if key else choose_samples(opened, samples)
        shown = augmented_clips(
            opened, clips=config.clips, augment=config.augment, samples=chosen, seed=seed or 0, epoch=epoch or 0
        )
    count = f"{len(shown.videos)} of {len(shown.samples)} samples"
    width, height = write_pictures(target, shown.videos, heading=(*shown.heading, count), fps=shown.fps)
    say(f"{': '.join(shown.heading)}, samples {' '.join(map(str, shown.samples))}")
    for note in shown.notes:
        say(note)
    say(f"{target}: {count}, {width}x{height} pixels")


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
    from rhofast.analysis.bench import bench as measure
    from rhofast.analysis.bench_report import draw
    from rhofast.config.load import load_config

    if plot is not None and plot.suffix.lower() != ".png":
        raise ConfigError(f"--plot {plot}: not a .png file")
    config = load_config(page, settings or [])
    with progress_bar() as progress:
        task = progress.add_task("warming up", total=None)

        def on_measurement(done: int, total: int) -> None:
            progress.update(task, description="measuring", completed=done, total=total)

        result = measure(config, what, batches=batches, rounds=rounds, on_measurement=on_measurement)
    if os.environ.get("RANK", "0") != "0":
        return
    out.print(bench_table(result))
    if target is not None:
        target.write_text(json.dumps(result, indent=1))
        say(f"written: {target}")
    if plot is not None:
        draw(result, plot)
        say(f"written: {plot}")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folder; several are compared")],
    target: Annotated[
        Path | None, typer.Option("--out", help="HTML file (default: RUN/report.html, or comparison.html beside RUN)")
    ] = None,
) -> None:
    """Write plots and pictures of a run, or of several side by side, into one HTML file."""
    from rhofast.analysis.report import write_report

    say(f"written: {write_report(runs, target)}")


def _refuse(why: str, options: dict[str, Any]) -> None:
    """Options that were given for something else."""
    for name in options:
        raise ConfigError(f"--{name.replace('_', '-')}: {why}", hint="see: rhofast show --help")


@show.command("neighbours", hidden=True)
@show.command()
def neighbors(
    checkpoint: EvalModel,
    shards: Annotated[str | None, typer.Option("--test", metavar="SHARDS", help="queries (default: the bank)")] = None,
    train: Annotated[str | None, typer.Option("--train", metavar="SHARDS", help="bank (default: the run's)")] = None,
    key: Annotated[list[str] | None, typer.Option(help="a query's key (default: some, spread over the set)")] = None,
    samples: Annotated[int, typer.Option(min=1, help="how many queries, without --key")] = 8,
    count: Annotated[int, typer.Option(min=1, help="neighbors of each")] = 5,
    target: Annotated[Path, typer.Option("--out", help=".png, or .gif or .mp4 that play")] = Path("neighbors.png"),
    settings: Settings = None,
) -> None:
    """A page of pictures: some videos, and beside each the ones that are nearest in feature space."""
    from rhofast.analysis.neighbors import draw_neighbors, open_bank
    from rhofast.analysis.rendering import check_suffix

    check_suffix(target)
    check_writable(target)
    model, bank, queries, chosen = open_bank(
        checkpoint, bank=train, queries=shards, keys=key or [], samples=samples, overrides=settings or []
    )
    with progress_bars("features") as (progress,):
        drawn = draw_neighbors(model, bank, queries, chosen, target, count=count, progress=progress)
    if is_main_process():
        print_left_out(drawn.left_out)
        asked = "1 query" if len(drawn.near) == 1 else f"{len(drawn.near)} queries"
        most = max((len(near.neighbors) for near in drawn.near), default=0)
        few = "" if most == count else "; there are no more of another source"
        say(f"{target}: {asked}, the {most} nearest of each{few}; {model.origin}")
