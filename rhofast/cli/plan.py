"""The verb `plan`. No logic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from rhofast.cli.console import out, say
from rhofast.cli.options import Settings

Gpus = Literal["a100", "h100", "h200"]


def plan(
    gpus: Annotated[int, typer.Option(min=1, max=10**6, help="GPUs of the run, one a rank")],
    videos: Annotated[
        float | None, typer.Option(min=1, max=1e12, help="to store, e.g. 65e6 (default: the dry run's)")
    ] = None,
    mean_seconds: Annotated[
        float | None, typer.Option(min=0.1, max=1e6, help="of a video (default: the dry run's)")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a machine")] = 8,
    gpu: Annotated[Gpus, typer.Option(help="which, where no bench tells their pace")] = "h100",
    codec: Annotated[str | None, typer.Option(help="jpeg,h264,hevc,copy: those to compare")] = None,
    epochs: Annotated[float | None, typer.Option(min=1e-6, max=1e9, help="in place of the page's")] = None,
    page: Annotated[Path | None, typer.Option("--config", help="page of the run (default: rho-BYOL's)")] = None,
    settings: Settings = None,
    bench_report: Annotated[Path | None, typer.Option("--bench", help="what `rhofast bench --out` wrote")] = None,
    dry_run: Annotated[Path | None, typer.Option(help="what `rhofast shard --dry-run --report` wrote")] = None,
    gop: Annotated[int | None, typer.Option(help="h264, hevc: frames a group (default: 16)")] = None,
    short_side: Annotated[
        int | None, typer.Option(min=16, max=4096, help="pixels of the shorter side (default: 256)")
    ] = None,
    fps: Annotated[float | None, typer.Option(min=0.1, max=1000, help="frames a second (default: 30)")] = None,
    samples_per_shard: Annotated[int | None, typer.Option(min=1, help="videos a shard (default: about 1 GB)")] = None,
    remote: Annotated[
        bool | None, typer.Option("--address/--mounted", help="where shards are (default: what data.train says)")
    ] = None,
    utilization: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="share of the GPU's peak that a step gets")
    ] = None,
    cores_per_node: Annotated[int | None, typer.Option(min=1, help="CPU cores of a machine")] = None,
    network: Annotated[float | None, typer.Option(min=0.001, help="GB/s from the storage to each machine")] = None,
    fabric: Annotated[float | None, typer.Option(min=0.001, help="GB/s from machine to machine")] = None,
    disk: Annotated[float | None, typer.Option(min=0.001, help="GB/s of a machine's own disk")] = None,
    storage: Annotated[
        float | None, typer.Option(min=0.001, help="GB/s that the storage gives all machines together")
    ] = None,
    mtbf_hours: Annotated[
        float | None, typer.Option(min=0.01, help="between two failures of one machine, hours")
    ] = None,
    restart_minutes: Annotated[
        float | None, typer.Option(min=0, help="from a failure to the next step, minutes")
    ] = None,
    sources: Annotated[bool, typer.Option("--sources", help="tell where every input comes from")] = False,
    target: Annotated[Path | None, typer.Option("--out", metavar="JSON", help="write every number, too")] = None,
) -> None:
    """What a run will need and how long it will take, on paper: storage, reading, decoding, checkpoints, failures; and
    what starves first."""
    from rhofast.analysis.capacity.inputs import collect_inputs
    from rhofast.analysis.capacity.options import PlannerOptions
    from rhofast.analysis.capacity.planner import plan_capacity
    from rhofast.cli.tables import plan_tables
    from rhofast.config.load import load_config, override_config

    length = [] if epochs is None else [f"train.epochs={float(epochs)}"]
    inputs = collect_inputs(
        override_config(load_config(page), [*(settings or []), *length]),
        PlannerOptions(
            gpus=gpus,
            gpus_per_node=gpus_per_node,
            gpu=gpu,
            videos=videos,
            mean_seconds=mean_seconds,
            codecs=codec.split(",") if codec else (),
            codec_options={} if gop is None else {"gop": gop},
            short_side=short_side,
            fps=fps,
            samples_per_shard=samples_per_shard,
            remote=remote,
            utilization=utilization,
            cores=cores_per_node,
            network=_scaled(network, 1e9),
            fabric=_scaled(fabric, 1e9),
            disk=_scaled(disk, 1e9),
            storage=_scaled(storage, 1e9),
            node_mtbf=_scaled(mtbf_hours, 3600),
            restart=_scaled(restart_minutes, 60),
            bench=bench_report,
            dry_run=dry_run,
        ),
    )
    found = plan_capacity(inputs.inputs, inputs.codecs, remote=inputs.remote, fixed_lanes=inputs.fixed_lanes)
    out.print(plan_tables(found, sources=sources))
    if target is not None:
        target.write_text(json.dumps(found.to_json(), indent=1), encoding="utf-8")
        say(f"written: {target}")


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit
