"""The commands that make shards: `shard`, `recipes`."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from rhofast.cli.console import ShardProgress, out, print_line, print_lines
from rhofast.cli.options import (
    EXECUTION,
    LIMITS,
    OUTPUT,
    SOURCE,
    STORAGE,
    Overrides,
    given,
)
from rhofast.cli.tables import estimate_table, set_table
from rhofast.errors import ConfigError
from rhofast.storage.files import write_atomically
from rhofast.storage.store_path import as_path

Executor = Literal["processes", "ray"]


def shard(
    source: Annotated[
        Path,
        typer.Argument(
            parser=partial(as_path, option="SOURCE", signed=True),
            metavar="SOURCE",
            help="Folder of videos, list of videos, or what the recipe asks for.",
            show_default=False,
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            parser=partial(as_path, option="OUT"),
            metavar="OUT",
            help="Folder or address for the shards: new, or to be continued.",
            show_default=False,
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Recipe, by name or path. Default: by the kind of SOURCE.", rich_help_panel=SOURCE
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Option of the recipe. Repeatable.", rich_help_panel=SOURCE),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add the videos that the set in OUT lacks.", rich_help_panel=SOURCE)
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Name of the set. Default: the name of OUT.", rich_help_panel=STORAGE)
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split, as written to dataset.json. Default: that which the recipe lists, else all.",
            rich_help_panel=STORAGE,
        ),
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Storage codec: jpeg, h264, hevc, remux or copy. Repeatable with --dry-run. Default: jpeg.",
            rich_help_panel=STORAGE,
        ),
    ] = None,
    fallback: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Codec of the videos that --codec cannot store as they are. Default: they are refused.",
            rich_help_panel=STORAGE,
        ),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(
            help="Quality: of jpeg ffmpeg's q, 2 (best) to 31, default 3; of h264 and hevc the CRF, 0 (best) to 51.",
            rich_help_panel=STORAGE,
        ),
    ] = None,
    gop: Annotated[
        int | None,
        typer.Option(help="Frames per group of pictures, for h264 and hevc. Default: 16.", rich_help_panel=STORAGE),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Preset of the encoder, for h264 and hevc. Default: medium.", rich_help_panel=STORAGE),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            help="What remux decodes to find damage: full (all) or keys (key frames). Default: full.",
            rich_help_panel=STORAGE,
        ),
    ] = None,
    max_group: Annotated[
        int | None,
        typer.Option(help="Frames of the longest group that remux takes. Default: 300.", rich_help_panel=STORAGE),
    ] = None,
    short_side: Annotated[
        int | None,
        typer.Option(help="Short side in pixels, a multiple of 16. Default: 256.", rich_help_panel=STORAGE),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(help="Frames per second. Default: the rate of each video.", rich_help_panel=STORAGE),
    ] = None,
    samples_per_shard: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Videos per shard; with --clip-seconds each is many samples. Default: 256, or 16 with --clip-seconds.",
            rich_help_panel=STORAGE,
        ),
    ] = None,
    clip_seconds: Annotated[
        float | None,
        typer.Option(help="Cut videos into windows of this duration. Default: no windows.", rich_help_panel=LIMITS),
    ] = None,
    stride: Annotated[
        float | None,
        typer.Option(help="Seconds from one window to the next. Default: --clip-seconds.", rich_help_panel=LIMITS),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(help="Seconds that are kept of a longer video or segment. Default: all.", rich_help_panel=LIMITS),
    ] = None,
    min_duration: Annotated[
        float | None, typer.Option(help="Seconds below which a video or segment is refused.", rich_help_panel=LIMITS)
    ] = None,
    max_duration: Annotated[
        float | None, typer.Option(help="Seconds above which a video or segment is refused.", rich_help_panel=LIMITS)
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds after which a video is refused.", rich_help_panel=LIMITS)
    ] = 3600.0,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Videos in work at once. Default: one per core.", rich_help_panel=EXECUTION),
    ] = None,
    executor: Annotated[
        Executor, typer.Option(help="Where the work is done.", rich_help_panel=EXECUTION)
    ] = "processes",
    ray_address: Annotated[
        str | None,
        typer.Option(help="Ray cluster. Default: RAY_ADDRESS, or a cluster of its own.", rich_help_panel=EXECUTION),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Build only part I of N (job arrays). Finish with one run without --task.",
            rich_help_panel=EXECUTION,
        ),
    ] = None,
    dry_run: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of videos to try. Prints size, time and quality to expect; writes no shards.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="File for all numbers of the dry run.", rich_help_panel=OUTPUT),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Convert videos to shards. The same command continues a build that was stopped."""
    from rhofast.config.load import load_config
    from rhofast.config.section import parse_section
    from rhofast.data.codecs import build_codecs
    from rhofast.data.format.dataset import open_folder
    from rhofast.ingest.array_task import parse_task
    from rhofast.ingest.build import BuildSettings, build_shards
    from rhofast.ingest.dry_run import estimate_build
    from rhofast.ingest.executors import LocalProcesses
    from rhofast.ingest.existing_set import known_classes, stored_keys
    from rhofast.ingest.listing import Listing, PassedOverCount
    from rhofast.ingest.out_folder import check_out
    from rhofast.ingest.ray_cluster import RayCluster
    from rhofast.ingest.recipes import find_classes, find_records, listed_split, published_count
    from rhofast.ingest.segments import check_cutting
    from rhofast.ingest.transcode import TranscodeSettings

    names = [*(codec or ["jpeg"]), *([] if fallback is None else [fallback])]
    codecs = build_codecs(names, given(quality=quality, gop=gop, preset=preset, check=check, max_group=max_group))
    spare = None if fallback is None else codecs.pop()
    if len(codecs) > 1 and dry_run is None:
        raise ConfigError(
            "--codec is given more than once", hint="a set has one codec and a --fallback; --dry-run N compares several"
        )
    if spare is not None and (spare.untouched or not codecs[0].untouched):
        raise ConfigError(
            f"--fallback {spare.name}: a fallback encodes what remux or copy cannot store as it is",
            hint="--codec remux --fallback h264",
        )
    if spare is not None and dry_run is not None:  # both are tried, and compared
        if all(each.name != spare.name for each in codecs):
            codecs.append(spare)
        spare = None
    changes = given(short_side=short_side, fps=fps, max_seconds=max_seconds)
    kept = changes.keys() & ({"short_side", "fps"} if codecs[0].cuts else set(changes))
    if kept and dry_run is None and codecs[0].untouched and spare is None:
        raise ConfigError(
            f"--{sorted(kept)[0].replace('_', '-')}: codec {codecs[0].name} keeps every video as it is",
            hint="omit the option, or choose --codec h264",
        )
    if stride is not None and clip_seconds is None:
        raise ConfigError(f"--stride {stride:g}: there are no windows", hint="add --clip-seconds")
    windows = given(clip_seconds=clip_seconds, stride=stride)
    limits = given(min_duration=min_duration, max_duration=max_duration, timeout=timeout)
    transcode = parse_section(TranscodeSettings, {**changes, **windows, **limits}, where="shard")
    takers = codecs if spare is None else [*codecs, spare]
    check_cutting(takers, "--clip-seconds" if windows else "")
    array_task = None if task is None else parse_task(task)
    processes = workers or os.cpu_count() or 1
    check_out(target)
    existing = open_folder(target) if append else None
    stored, known = (stored_keys(existing), known_classes(existing)) if existing is not None else ((), {})
    start = time.monotonic()
    with ShardProgress() as progress:
        passed_over = PassedOverCount()
        records = find_records(source, recipe, option or [], on_passed_over=passed_over.add)
        classes = find_classes(source, recipe, option or [])
        with Listing(
            records,
            stored=stored,
            known=known,
            classes=classes,
            windows=bool(windows),
            passed_over=passed_over,
            on_count=progress.on_count,
        ) as listing:
            check_cutting(takers, listing.segment)
            progress.begin(listing.listed, len(listing))
            if dry_run is not None:
                clips = load_config(None, overrides or []).clips
                estimate = estimate_build(
                    listing, codecs, transcode, clips, samples=dry_run, workers=processes, on_progress=progress.on_tried
                )
            else:
                info = build_shards(
                    listing,
                    target,
                    BuildSettings(
                        name=_stored_option("--name", name or target.resolve().name),
                        split=_stored_option("--split", split or listed_split(source, recipe, option or [])),
                        codec=codecs[0],
                        transcode=transcode,
                        samples_per_shard=samples_per_shard or (16 if windows else 256),
                        fallback=spare,
                    ),
                    RayCluster(address=ray_address, workers=workers)
                    if executor == "ray"
                    else LocalProcesses(processes),
                    task=array_task,
                    append_to=existing,
                    on_progress=progress.on_videos,
                )
    if dry_run is not None:
        out.print(estimate_table(estimate, passed_over.counts))
        if report is not None:
            write_atomically(report, json.dumps(estimate.to_json(), indent=1))
            print_line(f"Wrote {report}")
    elif info is None:
        print_line(
            f"{target}: part {task} is done. When all parts are, the same command without --task ends the build."
        )
    else:
        count = published_count(source, recipe, option or [])
        seconds = time.monotonic() - start
        out.print(
            set_table(
                target,
                info,
                listed=progress.listed,
                passed_over=passed_over.counts,
                as_published=count,
                seconds=seconds,
            )
        )


def _stored_option(option: str, text: str) -> str:
    from rhofast.ingest.stored_names import stored_name

    try:
        return stored_name(text)
    except ValueError:
        raise ConfigError(f"{option}={text!r}: not text") from None


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Recipe to describe. Default: list all.", show_default=False)
    ] = None,
) -> None:
    """List the data set recipes, or describe one."""
    from rhofast.ingest.recipes import describe_recipe, recipe_names

    if name is not None:
        print_lines(describe_recipe(name))
        return
    for recipe in recipe_names():
        print_line(describe_recipe(recipe).partition("\n")[0])
