"""The command `plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from rhofast.cli.console import out, print_line
from rhofast.cli.options import DATA, OUTPUT, RUN, ConfigOption, Overrides
from rhofast.storage.files import write_atomically

Gpu = Literal["a100", "h100", "h200"]
CLUSTER, MEASURED = "Cluster (defaults: see --sources)", "Measured on your system"


def plan(
    gpus: Annotated[
        int, typer.Option(min=1, max=10**6, help="GPUs of the run; one rank per GPU.", rich_help_panel=RUN)
    ],
    gpus_per_node: Annotated[int, typer.Option(min=1, max=10**9, help="GPUs per node.", rich_help_panel=RUN)] = 8,
    gpu: Annotated[
        Gpu, typer.Option(help="Kind of GPU, if --bench does not give its speed.", rich_help_panel=RUN)
    ] = "h100",
    epochs: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1e9, help="Epochs. Default: those of the config.", rich_help_panel=RUN),
    ] = None,
    utilization: Annotated[
        float | None,
        typer.Option(min=0.001, max=1, help="Share of the GPU's peak that a step reaches.", rich_help_panel=RUN),
    ] = None,
    videos: Annotated[
        float | None,
        typer.Option(
            min=1, max=1e12, help="Number of videos, such as 65e6. Default: the dry run's.", rich_help_panel=DATA
        ),
    ] = None,
    test_videos: Annotated[
        float | None,
        typer.Option(
            min=1, max=1e12, help="Held-out videos of kNN, such as 19.8e3. Default: no kNN.", rich_help_panel=DATA
        ),
    ] = None,
    kept_share: Annotated[
        float | None,
        typer.Option(
            min=1e-9,
            max=1,
            help="Share of the videos that a list (keep) trains on. Default: all.",
            rich_help_panel=DATA,
        ),
    ] = None,
    mean_seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=1e6, help="Mean duration of a video, in seconds. Default: the dry run's.", rich_help_panel=DATA
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(help="Codecs to compare, such as jpeg,h264. Default: all that are known.", rich_help_panel=DATA),
    ] = None,
    gop: Annotated[
        int | None, typer.Option(help="Frames per group, for h264 and hevc. Default: 16.", rich_help_panel=DATA)
    ] = None,
    short_side: Annotated[
        int | None, typer.Option(min=16, max=4096, help="Short side in pixels. Default: 256.", rich_help_panel=DATA)
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(min=0.1, max=1000, help="Frames per second, as stored. Default: 30.", rich_help_panel=DATA),
    ] = None,
    source_bit_rate: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1e5, help="Mbit/s of the sources' video, for remux and copy.", rich_help_panel=DATA
        ),
    ] = None,
    source_group: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=1e6,
            help="Frames per group of the sources, for remux and copy. Default: the dry run's, or all.",
            rich_help_panel=DATA,
        ),
    ] = None,
    samples_per_shard: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="Videos per shard. Default: about 1 GB.", rich_help_panel=DATA)
    ] = None,
    remote: Annotated[
        bool | None,
        typer.Option(
            "--address/--mounted",
            help="Whether shards are behind an address. Default: what data.train says.",
            rich_help_panel=DATA,
        ),
    ] = None,
    cores_per_node: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="CPU cores per node.", rich_help_panel=CLUSTER)
    ] = None,
    network: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e9, help="GB/s from the storage to one node.", rich_help_panel=CLUSTER),
    ] = None,
    fabric: Annotated[
        float | None, typer.Option(min=0.001, max=1e9, help="GB/s between two nodes.", rich_help_panel=CLUSTER)
    ] = None,
    disk: Annotated[
        float | None, typer.Option(min=0.001, max=1e9, help="GB/s of a node's own disk.", rich_help_panel=CLUSTER)
    ] = None,
    storage: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e9, help="GB/s of the storage, to all nodes.", rich_help_panel=CLUSTER),
    ] = None,
    request_rate: Annotated[
        float | None,
        typer.Option(
            min=1, max=1e9, help="Reads per second that the store answers per prefix.", rich_help_panel=CLUSTER
        ),
    ] = None,
    prefixes: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="Prefixes over which the shards are spread.", rich_help_panel=CLUSTER),
    ] = None,
    request_cost: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="$ per million reads of the store.", rich_help_panel=CLUSTER)
    ] = None,
    mtbf_hours: Annotated[
        float | None,
        typer.Option(min=0.01, max=1e9, help="Hours between two failures of one node.", rich_help_panel=CLUSTER),
    ] = None,
    restart_minutes: Annotated[
        float | None,
        typer.Option(min=0, max=1e9, help="Minutes from a failure to the next step.", rich_help_panel=CLUSTER),
    ] = None,
    config: ConfigOption = None,
    overrides: Overrides = None,
    bench_report: Annotated[
        Path | None,
        typer.Option("--bench", metavar="JSON", help="Report of `rhofast bench --out`.", rich_help_panel=MEASURED),
    ] = None,
    dry_run: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="Report of `rhofast shard --dry-run --report`.", rich_help_panel=MEASURED),
    ] = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="Print the source of every input.", rich_help_panel=OUTPUT)
    ] = False,
    target: Annotated[
        Path | None, typer.Option("--out", metavar="JSON", help="File for all numbers.", rich_help_panel=OUTPUT)
    ] = None,
) -> None:
    """Plan a large run on paper: storage, reading, decoding, checkpoints, failures, and the first bottleneck."""
    from rhofast.analysis.capacity.inputs import collect_inputs
    from rhofast.analysis.capacity.options import PlannerOptions
    from rhofast.analysis.capacity.planner import plan_capacity
    from rhofast.cli.plan_tables import plan_tables
    from rhofast.config.load import load_config, override_config

    length = [] if epochs is None else [f"train.epochs={float(epochs)}"]
    inputs = collect_inputs(
        override_config(load_config(config), [*(overrides or []), *length]),
        PlannerOptions(
            gpus=gpus,
            gpus_per_node=gpus_per_node,
            gpu=gpu,
            videos=videos,
            test_videos=test_videos,
            kept_share=kept_share,
            mean_seconds=mean_seconds,
            codecs=codec.split(",") if codec else (),
            codec_options={} if gop is None else {"gop": gop},
            short_side=short_side,
            fps=fps,
            source_bit_rate=_scaled(source_bit_rate, 1e6),
            source_group=source_group,
            samples_per_shard=samples_per_shard,
            remote=remote,
            utilization=utilization,
            cores=cores_per_node,
            network=_scaled(network, 1e9),
            fabric=_scaled(fabric, 1e9),
            disk=_scaled(disk, 1e9),
            storage=_scaled(storage, 1e9),
            request_rate=request_rate,
            prefixes=prefixes,
            request_cost=request_cost,
            node_mtbf=_scaled(mtbf_hours, 3600),
            restart=_scaled(restart_minutes, 60),
            bench=bench_report,
            dry_run=dry_run,
        ),
    )
    found = plan_capacity(
        inputs.inputs,
        inputs.codecs,
        remote=inputs.remote,
        ranges=inputs.ranges,
        fixed_lanes=inputs.fixed_lanes,
    )
    out.print(plan_tables(found, sources=sources))
    if target is not None:
        write_atomically(target, json.dumps(found.to_json(), indent=1))
        print_line(f"Wrote {target}")


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit
