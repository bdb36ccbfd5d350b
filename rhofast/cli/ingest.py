"""The commands that make and check shards: `shard`, `recipes`, `verify`, `inspect`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from rhofast.cli.console import ShardProgress, err, out, progress_bar, say
from rhofast.cli.options import Settings, check_png, given
from rhofast.cli.tables import estimate_table, set_table, summary_table
from rhofast.errors import ConfigError
from rhofast.storage.files import as_path

ShardsArgument = Annotated[Path, typer.Argument(metavar="SHARDS", help="folder of a shard set", show_default=False)]
SourceArgument = Annotated[
    str, typer.Argument(metavar="SHARDS", help="folder or address of a shard set", show_default=False)
]


Executors = Literal["processes", "ray"]


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
    from rhofast.data.format.dataset import open_folder
    from rhofast.ingest.array_task import parse_task
    from rhofast.ingest.build import BuildSettings, build_shards, stored_keys
    from rhofast.ingest.dry_run import estimate_build
    from rhofast.ingest.executors import LocalProcesses
    from rhofast.ingest.listing import Listing
    from rhofast.ingest.ray_cluster import RayCluster
    from rhofast.ingest.recipes import find_records, published_count
    from rhofast.ingest.transcode import TranscodeSettings

    codecs = build_codecs(codec or ["jpeg"], given(quality=quality, gop=gop, preset=preset))
    if len(codecs) > 1 and dry_run is None:
        raise ConfigError("--codec is given more than once", hint="one set has one codec; --dry-run N compares several")
    changes = given(short_side=short_side, fps=fps, max_seconds=max_seconds)
    if changes and dry_run is None and codecs[0].name == "copy":
        raise ConfigError(f"--{next(iter(changes)).replace('_', '-')}: codec copy keeps every video as it is")
    limits = given(min_duration=min_duration, max_duration=max_duration, timeout=timeout)
    transcode = parse_section(TranscodeSettings, {**changes, **limits}, where="shard")
    array_task = None if task is None else parse_task(task)
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
                expected = estimate_build(
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
                    task=array_task,
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


def recipes(name: Annotated[str | None, typer.Argument(help="recipe to describe (default: list all)")] = None) -> None:
    """List the recipes for data sets, or tell how to use one."""
    from rhofast.ingest.recipes import describe_recipe, recipe_names

    if name is not None:
        say(describe_recipe(name))
        return
    for one in recipe_names():
        say(describe_recipe(one).partition("\n")[0])


def verify(
    shards: ShardsArgument,
    deep: Annotated[bool, typer.Option("--deep", help="decode everything too, as training does")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="processes (default: one a core)")] = None,
) -> None:
    """Check every promise of the shard format. Exit code 1 if one is broken."""
    from rhofast.data.format.dataset import open_folder
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


def inspect(
    shards: SourceArgument,
    target: Annotated[Path | None, typer.Option("--out", help="PNG file for histograms")] = None,
    settings: Settings = None,
) -> None:
    """Print what is in a shard set, and what its clips cost to read (geometry: --set clips.num_clips=4 ...)."""
    from rhofast.config.load import load_config
    from rhofast.data.sources import open_shards
    from rhofast.ingest.summary import summarize
    from rhofast.ingest.summary_plot import draw_summary

    if target is not None:
        check_png(target)
    clips = load_config(None, settings or []).clips
    opened = open_shards(shards)
    summary = summarize(opened, clips)
    out.print(summary_table(opened.info, summary, clips))
    if target is not None:
        draw_summary(summary, target)
        say(f"written: {target}")
