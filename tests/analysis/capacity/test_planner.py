"""The capacity planner: closed forms, comparison with a real step and real files, and monotonicity."""

import json
import math
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from rhofast.analysis.capacity.codec_costs import (
    PIXELS,
    clip_frames,
    range_cost,
    spread_sizes,
    stored_frame,
    units_of,
)
from rhofast.analysis.capacity.failures import daly_interval, expected_seconds, young_interval
from rhofast.analysis.capacity.flops import Workload, count_workload
from rhofast.analysis.capacity.inputs import collect_inputs
from rhofast.analysis.capacity.options import PlannerOptions
from rhofast.analysis.capacity.plan import Plan
from rhofast.analysis.capacity.planner import plan_capacity
from rhofast.analysis.capacity.quantities import Input, Number, amount
from rhofast.cli.app import app
from rhofast.config.load import load_config
from rhofast.config.schema import ClipConfig, Config
from rhofast.data.codecs import build_codec
from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.format.index import IndexRow
from rhofast.data.format.ranges import join_spans
from rhofast.data.sampling.batch_plan import training_clips
from rhofast.data.sampling.clip_cost import frame_sizes
from rhofast.errors import ConfigError
from rhofast.evaluation.nearest import QUERY_BLOCK
from rhofast.models.methods import METHODS, build_method
from rhofast.models.methods.method import TrainingProgress
from rhofast.storage import user_code
from rhofast.training.optim import build_optimizer
from rhofast.training.step import forward_backward
from tests.helpers.shards import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "capacity_xeon-2-cores_202611.json"
SMALL = ["backbone.name=slow_r18", "backbone.width=8", "augment.size=32", "train.epochs=200"]
HOUR = 3600.0

PLAIN = {
    "gpus": 64.0,
    "gpus_per_node": 8.0,
    "videos": 1e6,
    "mean_seconds": 20.0,
    "fps": 30.0,
    "stored_share": 0.5,
    "batch": 512.0,
    "epochs": 10.0,
    "clips": 2.0,
    "peak": 1e15,
    "utilization": 0.25,
    "flops": 1e12,
    "gradient_bytes": 2e8,
    "checkpoint_bytes": 5e8,
    "checkpoint_steps": 500.0,
    "keep": 3.0,
    "checkpoint_rate": 1e9,
    "cores": 100.0,
    "network": 10e9,
    "fabric": 100e9,
    "disk": 5e9,
    "cache": 50e9,
    "block_shards": 8.0,
    "node_mtbf": 6000 * HOUR,
    "restart": 600.0,
    "stall": 0.1,
    "jpeg.frame_bytes": 15000.0,
    "jpeg.ingest_seconds": 1.0,
    "jpeg.samples_per_shard": 100.0,
    "jpeg.units_per_frame": 1.0,
    "jpeg.frames_read": 16.0,
    "jpeg.frames_decoded": 16.0,
    "jpeg.host_seconds": 4e-4,
    "jpeg.host_decode": 2e-3,
    "jpeg.decode_rate": 10000.0,
}


def planned(
    remote: bool = False,
    measured: tuple[str, ...] = (),
    fixed_lanes: bool = False,
    ranges: bool | None = False,
    **changes: float | None,
) -> Plan:
    """Return the plan of PLAIN with some inputs changed (`jpeg__x` for `jpeg.x`), or removed by None."""
    values = {**PLAIN, **{name.replace("__", "."): value for name, value in changes.items()}}
    inputs = {
        name: Input(value=value, unit="", origin="measured" if name in measured else "given", source="")
        for name, value in values.items()
        if value is not None
    }
    return plan_capacity(inputs, ("jpeg",), remote=remote, ranges=ranges, fixed_lanes=fixed_lanes)


def fact(plan: Plan, name: str) -> float:
    return {**plan.facts, **plan.codecs[0].facts}[name].value


def shares(plan: Plan) -> dict[str, float]:
    return {limit.name: limit.share for limit in plan.codecs[0].limits}


def test_the_plan_is_its_closed_forms() -> None:
    plan = planned()
    rate = 64 * 1e15 * 0.25 / 1e12  # 16,000 videos per second
    stored, frames = 5e5, 600
    assert fact(plan, "videos_per_second") == pytest.approx(rate)
    assert fact(plan, "steps_per_epoch") == 976 and fact(plan, "steps") == 9760
    assert fact(plan, "gpu_seconds") == pytest.approx(9760 * 512 / rate)
    assert fact(plan, "shard_bytes") == pytest.approx(stored * frames * 15000)
    assert fact(plan, "index_bytes") == pytest.approx(stored * (frames * 8.25 + 120))
    assert fact(plan, "shards") == pytest.approx(5000)
    assert fact(plan, "ingest") == pytest.approx(1e6 / 3600)
    assert fact(plan, "read_in_all") == pytest.approx(rate * 16 * 15000)
    assert fact(plan, "read_per_node") == pytest.approx(rate * 16 * 15000 / 8)
    assert fact(plan, "decoded_per_gpu") == pytest.approx(250 * 16)
    assert fact(plan, "host_cores") == pytest.approx(2000 * 4e-4)
    assert fact(plan, "exchange") == pytest.approx(2 * 2e8 * 7 / 8 / (512 / rate))
    assert fact(plan, "mtbf") == pytest.approx(750 * HOUR)
    assert shares(plan)["GPU decoders"] == pytest.approx(0.4)
    assert fact(plan, "slowdown") == 1
    assert fact(plan, "interval") == pytest.approx(500 * 512 / rate)


def test_knn_is_planned_for_held_out_videos() -> None:
    more = {"test_videos": 2e4, "views": 2.0, "features": 2048.0, "forward_flops": 1e11}
    plan = planned(**more, single_peak=5e13, single_utilization=0.5)
    assert fact(plan, "knn_extract") == pytest.approx(5.2e5 * 2 * 1e11 / (64 * 0.25 * 1e15))
    assert fact(plan, "knn_search") == pytest.approx(2 * 5e5 * 4e4 * 2048 / (64 * 2.5e13))
    assert fact(plan, "knn_bank") == pytest.approx(5e5 * 2048 * 4 + 5e5 * QUERY_BLOCK * 4)
    assert fact(plan, "knn_host") == pytest.approx(5.2e5 * 2 * 2048 * 4)
    assert not [name for name in planned().facts if name.startswith("knn")]


def test_with_remote_shards_every_node_downloads_the_set_in_every_epoch() -> None:
    plan = planned(remote=True)
    whole = fact(plan, "shard_bytes") + fact(plan, "index_bytes")
    epoch = fact(plan, "steps_per_epoch") * fact(plan, "step_seconds")
    assert fact(plan, "fetched_per_node") * epoch == pytest.approx(whole)
    assert fact(plan, "fetched_in_all") == pytest.approx(8 * fact(plan, "fetched_per_node"))
    assert fact(plan, "cache_needed") == pytest.approx(2 * 8 * whole / 5000)
    assert shares(plan)["network to storage, per node"] == pytest.approx(fact(plan, "fetched_per_node") / 10e9)
    kept = shares(planned(remote=True, cache=1e16))
    assert kept["network to storage, per node"] == 0  # after the first epoch all of it is there


def test_a_part_of_the_set_makes_epochs_shorter_and_nothing_smaller() -> None:
    whole, part = planned(remote=True), planned(remote=True, kept_share=0.1)
    assert fact(part, "steps_per_epoch") == 97 and fact(part, "steps") == 970
    for name in ("shard_bytes", "index_bytes", "shards", "cache_needed", "videos_per_second", "ingest"):
        assert fact(part, name) == fact(whole, name)
    assert fact(part, "fetched_per_node") / fact(whole, "fetched_per_node") == pytest.approx(976 / 97)
    assert any("10 % of the stored videos" in note and "downloads" in note for note in part.notes)
    assert not any("kept" in note for note in whole.notes)


def test_with_a_lane_for_each_node_the_nodes_together_fetch_the_set_once() -> None:
    plan, laned = planned(remote=True), planned(remote=True, lanes=8)
    assert fact(laned, "fetched_in_all") == pytest.approx(fact(plan, "fetched_per_node"))
    assert fact(laned, "cache_needed") == pytest.approx(fact(plan, "cache_needed"))
    more = planned(remote=True, lanes=32)  # four per node, each with its own blocks
    assert fact(more, "fetched_in_all") == pytest.approx(fact(laned, "fetched_in_all"))
    assert fact(more, "cache_needed") == pytest.approx(4 * fact(laned, "cache_needed"))
    few = planned(remote=True, lanes=2)
    assert fact(few, "fetched_per_node") == pytest.approx(fact(plan, "fetched_per_node") / 2)
    whole = planned(remote=True, lanes=8, block_shards=None)  # this epoch's part and the next one's
    stored = fact(whole, "shard_bytes") + fact(whole, "index_bytes")
    assert fact(whole, "cache_needed") == pytest.approx(stored / 4)
    advised = ["data.lanes" in " ".join(one.codecs[0].advice) for one in (plan, few, laned, more)]
    assert advised == [True, True, False, False]
    assert "every shard in every epoch" in plan.notes[-1] and "12.5 % of the shards" in laned.notes[-1]


def test_a_node_that_keeps_its_lanes_fetches_them_once() -> None:
    stored = sum(fact(planned(), name) for name in ("shard_bytes", "index_bytes"))
    for cache, fixed, again in ((stored / 8, True, False), (stored / 8 - 1, True, True), (stored / 8, False, True)):
        plan = planned(remote=True, lanes=8, fixed_lanes=fixed, cache=cache)
        assert (shares(plan)["network to storage, per node"] > 0) == again
        slower = fact(plan, "fetched_per_node") / 5e9 + fact(plan, "read_per_node") / 5e9  # of the cache's disk
        assert ("The first epoch fills the caches" in plan.codecs[0].advice[-1]) == (not again)
        assert again or f"so it takes {slower:.3g} times as long" in plan.codecs[0].advice[-1]
    whole = planned(remote=True, lanes=8, fixed_lanes=True, block_shards=None)
    assert fact(whole, "cache_needed") == pytest.approx(stored / 8)
    assert "12.5 % of the shards (always the same ones) in every epoch" in whole.notes[-1]
    assert "data.fixed_lanes" in whole.codecs[0].advice[1]


def test_a_cache_that_is_too_small_is_reported_first() -> None:
    plan = planned(remote=True, cache=1e9)
    assert "refuse to start" in plan.codecs[0].advice[0]
    assert fact(plan, "slowdown") == max(
        share for name, share in shares(plan).items() if name != "cache space of a node"
    )


def test_the_highest_utilization_sets_the_speed_and_is_named() -> None:
    plan = planned(jpeg__decode_rate=1000.0, network=1e9)
    assert fact(plan, "slowdown") == pytest.approx(4)
    assert plan.codecs[0].limits[0].name == "GPU decoders"
    assert "Bottleneck: GPU decoders at 400 % utilization" in plan.codecs[0].advice[0]
    assert "Bottleneck: the GPUs" in planned().codecs[0].advice[0]


def test_streams_that_no_engine_decodes_are_decoded_by_cores() -> None:
    plan = planned(jpeg__decode_rate=None)
    assert shares(plan)["CPU cores of a node"] == pytest.approx(2000 * (4e-4 + 16 * 2e-3) / 100)
    assert "GPU decoders" not in shares(plan)


def test_a_measured_speed_replaces_the_guess() -> None:
    plan = planned(gpu_clips=100.0, peak=None, utilization=None)
    assert fact(plan, "videos_per_second") == pytest.approx(64 * 50)
    assert not plan.notes


def test_the_origin_of_a_result_is_the_weakest_of_its_inputs() -> None:
    plan = planned(measured=("flops",))
    assert plan.facts["steps"].origin == "given"
    starved = planned(measured=("network",), network=1e8).codecs[0]
    assert starved.facts["wall"].origin == starved.limits[0].origin == "measured"
    assert plan.facts["step_seconds"].origin == "measured" and "flops" in plan.facts["step_seconds"].basis
    number = Number(2.0, frozenset("a")) * Number(3.0, frozenset("b")) / 2 + 1
    assert number == Number(4.0, frozenset("ab"))


UPWARD = st.floats(1.0, 50.0)


@settings(max_examples=60, deadline=None)
@given(factor=st.integers(1, 8), network=st.floats(0.01, 50), decode=st.floats(100, 1e5))
def test_more_gpus_never_need_less_and_never_take_longer(factor: int, network: float, decode: float) -> None:
    changes = {"network": network * 1e9, "jpeg__decode_rate": decode, "node_mtbf": 1e12, "fabric": 1e15}
    few, many = planned(**changes), planned(gpus=64.0 * factor, **changes)
    for name in ("read_in_all", "fetched_in_all", "exchange"):
        assert fact(many, name) >= fact(few, name) * (1 - 1e-9)
    assert fact(many, "read_per_node") == pytest.approx(fact(few, "read_per_node"))
    assert fact(many, "mtbf") <= fact(few, "mtbf")
    assert fact(many, "gpu_seconds") * factor == pytest.approx(fact(few, "gpu_seconds"))


@settings(max_examples=60, deadline=None)
@given(
    resource=st.sampled_from(["network", "cores", "fabric", "jpeg__decode_rate", "node_mtbf"]),
    factor=UPWARD,
    low=st.floats(0.001, 1),
)
def test_more_of_anything_never_makes_a_run_longer(resource: str, factor: float, low: float) -> None:
    value = PLAIN[resource.replace("__", ".")] * low
    less, more = planned(**{resource: value}), planned(**{resource: value * factor})
    assert fact(more, "wall") <= fact(less, "wall") * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(factor=UPWARD, name=st.sampled_from(["videos", "mean_seconds", "fps", "jpeg.frame_bytes"]))
def test_more_video_never_takes_less_room(factor: float, name: str) -> None:
    few, more = planned(), planned(**{name.replace(".", "__"): PLAIN[name] * factor})
    for which in ("shard_bytes", "fetched_in_all", "index_bytes", "read_per_epoch"):
        assert fact(more, which) >= fact(few, which) * 0.999  # an epoch is a whole number of steps


# ---- failures ----


def test_a_run_that_fails_faster_than_it_restarts_never_finishes() -> None:
    changes = {"node_mtbf": 1.0, "restart": 10 * HOUR}
    advice = " ".join(planned(**changes).codecs[0].advice)
    assert "training never finishes, because nodes fail" in advice and "infinite" not in advice


@pytest.mark.parametrize(
    "absurd",
    [
        *("--videos inf", "--videos 1e30", "--mean-seconds 1e300", "--fps inf", "--gpus 0"),
        *("--request-cost inf", "--request-rate inf", "--network 1e300", "--mtbf-hours inf"),
    ],
)
def test_absurd_numbers_are_refused(absurd: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = f"plan --videos 1e6 --mean-seconds 26 --gpus 8 {absurd}"
    with pytest.raises(Exception, match="Input should be"):
        app(whole.split(), standalone_mode=False)
    with pytest.raises(ConfigError, match=r"100,000,000 frames: more than"):
        app([*whole.split()[:3], "--mean-seconds", "1e6", "--fps", "100", "--gpus", "8"], standalone_mode=False)


@given(stall=st.floats(0.01, 100), mtbf=st.floats(2000, 1e7))
def test_daly_s_interval_is_nearly_optimal(stall: float, mtbf: float) -> None:
    def taken(interval: float) -> float:
        return expected_seconds(1.0, interval=interval, stall=stall, restart=60, mtbf=mtbf)

    best = daly_interval(stall, mtbf)
    assert taken(best) <= min(taken(best * float(factor)) for factor in np.geomspace(0.1, 10, 101)) * (1 + 1e-4)
    assert best <= young_interval(stall, mtbf) * 1.2


def test_a_run_without_failures_costs_its_checkpoints() -> None:
    taken = expected_seconds(1000.0, interval=10, stall=1, restart=60, mtbf=1e12)
    assert taken == pytest.approx(1100, rel=1e-6)
    assert expected_seconds(1.0, interval=1e6, stall=1, restart=1, mtbf=1.0) == math.inf


def test_interruptions_cost_what_a_simulation_says() -> None:
    interval, stall, restart, mtbf, segments = 50.0, 5.0, 20.0, 200.0, 20000
    draw, clock = np.random.default_rng(0), 0.0
    fails = draw.exponential(mtbf)  # time left until the next failure
    for _ in range(segments):
        needed = interval + stall
        while fails < needed:
            clock += fails
            fails, needed = draw.exponential(mtbf), restart + interval + stall
        clock, fails = clock + needed, fails - needed
    expected = expected_seconds(segments * interval, interval=interval, stall=stall, restart=restart, mtbf=mtbf)
    # Daly lets each segment begin with the restart's survival: an upper bound, close where restarts are short.
    assert clock <= expected * 1.02
    assert clock == pytest.approx(expected, rel=0.12)


# ---- the cost of a step ----


@pytest.mark.parametrize("method", sorted(METHODS))
def test_operations_and_bytes_are_those_of_a_real_step(method: str) -> None:
    config = load_config(None, [*SMALL, f"method.name={method}", "method.hidden=32", "method.out=16"])
    counted = count_workload(config, 2)
    backbone = build_small(config)
    real = build_method(config.method.name, config.method.options, backbone)
    optimizer = build_optimizer(real, config.optim)
    with FlopCounterMode(display=False) as counter:
        forward_backward(
            real, real, torch.randn(2, 2, 3, 8, 32, 32), TrainingProgress(step=10**9, epoch=2.0, epochs=4.0)
        )
    optimizer.step()
    assert counted.flops == pytest.approx(counter.get_total_flops() / 2, rel=0.12)  # the stem's input has no gradient
    assert counted.flops >= counter.get_total_flops() / 2
    state = sum(value.numel() * value.element_size() for value in real.state_dict().values())
    slots = sum(
        value.numel() * value.element_size()
        for slot in optimizer.state_dict()["state"].values()
        for value in slot.values()
        if isinstance(value, torch.Tensor)
    )
    assert counted.checkpoint_bytes == state + slots


def build_small(config: Config) -> torch.nn.Module:
    from rhofast.checkpoint.backbone import untrained_backbone

    return untrained_backbone(config)


def test_the_published_step_has_the_published_operations() -> None:
    """Slow-R50, 8 frames of 224 pixels: 54.5 G multiply-adds at 256 (Feichtenhofer et al., arXiv 1812.03982), less by
    the area; BYOL does that 4 times per clip: once in the momentum network, once forward, twice backward."""
    work = count_workload(load_config(None), 2)
    assert work.flops == pytest.approx(2 * 4 * 2 * 54.5e9 * (224 / 256) ** 2, rel=0.02)


def vit_operations(frames: int, size: int, *, width: int, depth: int, keep: float) -> int:
    """Operations of one forward pass of one clip: patches, queries, keys and values, attention, its output, the MLP."""
    tokens = max(1, round(keep * (frames // 2) * (size // 16) ** 2))
    patches = tokens * 2 * 16 * 16 * 3 * width
    block = tokens * (3 + 1 + 4 + 4) * width**2 + 2 * tokens**2 * width
    return 2 * (patches + depth * block)


@pytest.mark.parametrize(
    ("method", "trained", "others"),
    [("byol", 2, 2), ("moco_v3", 2, 2), ("lejepa", 2, 0)],
)
@pytest.mark.parametrize("keep", [1.0, 0.25])
def test_a_vit_s_dropped_tokens_are_not_counted(method: str, trained: int, others: int, keep: float) -> None:
    """Clips with gradients cost three times what is kept of them; those of momentum networks once, and whole."""
    sizes = ["clips.num_frames=8", "augment.size=64", "backbone.width=96", "backbone.depth=3", "backbone.heads=3"]
    names = ["backbone.name=vit", f"backbone.keep={keep}", f"method.name={method}", "method.hidden=8", "method.out=4"]
    work = count_workload(load_config(None, [*names, *sizes, "train.epochs=1"]), 2)
    kept, whole = (vit_operations(8, 64, width=96, depth=3, keep=share) for share in (keep, 1.0))
    backbones = 3 * trained * kept + others * whole
    assert 0 < work.flops - backbones < 2e-3 * backbones  # what the heads do


PRICED = sorted(path for path in (ROOT / "configs").glob("*.toml") if "vit" in path.name or "s3d" in path.name)


@pytest.mark.parametrize("path", PRICED, ids=[path.stem for path in PRICED])
def test_the_configs_of_vits_and_of_s3d_are_priced(path: Path) -> None:
    """ViT-B/16 with 1,568 tokens, by its closed form; S3D-G at 17.98 G multiply-adds and its gates."""
    config = load_config(path)
    work = count_workload(config, config.clips.num_clips)
    if config.backbone.name == "vit":
        keep = float(config.backbone.options.get("keep", 1.0))
        kept, whole = (vit_operations(16, 224, width=768, depth=12, keep=share) for share in (keep, 1.0))
    else:
        kept = whole = 2 * int(17.98e9)
    momentum = config.method.name in ("byol", "moco_v3")
    assert work.flops == pytest.approx(config.clips.num_clips * (3 * kept + momentum * whole), rel=0.01)
    assert config.train.batch_size % 8 == 0 and config.train.epochs == 200
    if config.backbone.name == "vit":
        assert (config.optim.name, config.train.precision, config.train.compile) == ("adamw", "bf16", True)
        assert config.optim.warmup_epochs > 0


OWN = """
import torch
from torch import nn
from rhofast.models.methods.method import Method

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 50), nn.BatchNorm1d(50)
        self.num_features = 50

    def forward(self, x):
        return self.norm(self.layer(x.mean(dim=(2, 3, 4))))

class Looks(Net):
    def forward(self, x):
        return super().forward(x * 2 if float(x.sum()) > 1e9 else x)

class Means(Method):
    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def num_passes(self, num_clips):
        return 1

    def forward(self, pixels, pass_index):
        features = torch.stack([self.backbone(clip) for clip in pixels.unbind(dim=1)])
        return features.var(dim=0).mean() - features.std(), {}

class Asks(Means):
    def forward(self, pixels, pass_index):
        return super().forward(pixels, pass_index + len(self.backbone.layer.weight))
"""


def test_code_of_the_user_s_own_is_priced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(user_code, "_IMPORTED", {})
    Path("own_priced.py").write_text(OWN)
    for network in ("Net", "Looks"):
        names = [f"backbone.name=own_priced.py:{network}", "method.name=own_priced.py:Means", "train.epochs=1"]
        work = count_workload(load_config(None, [*names, "augment.size=16"]), 3)
        assert work.flops == 3 * 3 * 2 * 3 * 50
        assert work.gradient_bytes == 4 * (3 * 50 + 3 * 50)
    command = "plan --gpus 1 --videos 1e4 --mean-seconds 9"
    command += " --set train.epochs=1 --set train.batch_size=8 --set augment.size=16"
    own = "--set backbone.name=own_priced.py:Net --set method.name=own_priced.py"
    app(shlex.split(f"{command} {own}:Means"), standalone_mode=False)
    assert re.search(r"operations per video +│ +1.8 kFLOP", capsys.readouterr().out)
    with pytest.raises(ConfigError, match=r":Asks, around a stand-in for the backbone that has no layers: Attribute"):
        app(shlex.split(f"{command} {own}:Asks"), standalone_mode=False)


# ---- codec costs ----


def test_default_sizes_are_close_to_measured_ones() -> None:
    rows = 0
    for report in json.loads(RESULTS.read_text())["dry_runs"]:
        for one in report["codecs"]:
            if one["metrics"] is None:
                continue
            codec, metrics = build_codec(one["codec"]), one["metrics"]
            seconds = 3600 * metrics["total_hours"] / report["videos"]
            fps = metrics["bytes_per_video"] / metrics["bytes_per_frame"] / seconds
            pixels = PIXELS * (report["settings"]["short_side"] / 256) ** 2
            size, spent = stored_frame(codec, pixels=pixels, fps=fps)
            assert size == pytest.approx(metrics["bytes_per_frame"], rel=0.12), one["codec"]
            assert spent * seconds == pytest.approx(one["cpu_seconds"], rel=1.3), one["codec"]
            rows += 1
    assert rows > 15


def test_kept_groups_cost_what_their_length_says() -> None:
    clips, remux, h264 = load_config(None).clips, build_codec({"name": "remux"}), build_codec({"name": "h264"})
    kept = clip_frames(clips, remux, units_of(remux, 320, 16.0), 30.0)
    assert kept == clip_frames(clips, h264, units_of(h264, 320), 30.0)
    costs = [clip_frames(clips, remux, units_of(remux, 320, group), 30.0)[1:] for group in (1.0, 16.0, 80.0, None)]
    assert costs == sorted(costs) and costs[-1][0] == pytest.approx(320)
    size, spent = stored_frame(remux, pixels=PIXELS, fps=30.0, bit_rate=0.8e6)
    assert size == pytest.approx(0.8e6 / 8 / 30) and spent < stored_frame(h264, pixels=PIXELS, fps=30.0)[1] / 10
    keys = build_codec({"name": "remux", "check": "keys"})
    assert stored_frame(keys, pixels=PIXELS, fps=30.0, bit_rate=1e6)[1] < spent / 3


@pytest.mark.parametrize("name, gop", [("jpeg", 1), ("h264", 1), ("h264", 16), ("hevc", 32), ("copy", 1)])
def test_clips_read_and_decode_what_the_codec_makes_them(name: str, gop: int) -> None:
    codec = build_codec({"name": name} | ({"gop": gop} if name in ("h264", "hevc") else {}))
    clips = load_config(None).clips
    count, read, decoded = clip_frames(clips, codec, units_of(codec, 300), 30.0)
    assert count == 2
    if name == "copy":
        assert read == pytest.approx(300)
    elif gop == 1:
        assert read == pytest.approx(decoded) and 15 < read <= 16  # clips may share a frame
    else:
        assert 16 < decoded < read <= 300 + 1e-6


@pytest.mark.parametrize("name", ["jpeg", "h264"])
def test_the_loader_read_and_decoded_what_is_planned(name: str) -> None:
    """Of two videos of ten seconds, each several times, in three rounds of ten batches."""
    report = json.loads(RESULTS.read_text())
    loader = [rank["stats"] for one in report["bench_loader"][name]["measurements"] for rank in one["ranks"]]
    made = next(one for one in report["dry_runs"][0]["codecs"] if one["codec"]["name"] == name)
    codec, videos = build_codec(made["codec"]), sum(one["clips"] for one in loader) / 2
    _, read, decoded = clip_frames(load_config(None).clips, codec, units_of(codec, 290), 29.0)
    assert sum(one["frames_decoded"] for one in loader) / videos == pytest.approx(decoded, rel=0.05)
    assert sum(one["bytes_read"] for one in loader) / videos == pytest.approx(
        read * made["metrics"]["bytes_per_frame"], rel=0.1
    )


# ---- inputs ----


def ask(**changes: Any) -> PlannerOptions:
    given: dict[str, Any] = {"gpus": 64, "videos": 1e6, "mean_seconds": 10.0, "codec_options": {}}
    return PlannerOptions(**{**given, **changes})


def dry_report(tmp_path: Path) -> Path:
    path = tmp_path / "dry.json"
    path.write_text(json.dumps(json.loads(RESULTS.read_text())["dry_runs"][0]))
    return path


def bench_report(tmp_path: Path, **changes: Any) -> Path:
    config = load_config(None, SMALL).model_dump(mode="json")
    report = {
        "what": "step",
        "config": config,
        "machine": {"device": "NVIDIA H100"},
        "world_size": 2,
        "summary": {"memory": {"clips_per_second": {"median": 600.0}}},
    }
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({**report, **changes}))
    return path


def test_without_reports_every_guess_is_a_default() -> None:
    found = collect_inputs(load_config(None, SMALL), ask())
    assert found.codecs == ("jpeg", "h264", "hevc") and not found.remote
    assert found.inputs["videos"].origin == "given" and found.inputs["flops"].origin == "given"
    assert found.inputs["h264.frame_bytes"].origin == "default" and found.inputs["utilization"].origin == "default"
    assert all(one.source for one in found.inputs.values())
    assert found.inputs["h264.frame_bytes"].value < found.inputs["jpeg.frame_bytes"].value / 4


def test_a_dry_run_says_what_the_videos_are(tmp_path: Path) -> None:
    path = dry_report(tmp_path)
    found = collect_inputs(load_config(None, SMALL), ask(dry_run=path, videos=2e6, mean_seconds=None)).inputs
    assert found["videos"].origin == "given" and found["videos"].value == 2e6
    assert found["mean_seconds"].value == pytest.approx(10, rel=0.01) and found["mean_seconds"].origin == "measured"
    assert found["fps"].value == pytest.approx(29, rel=0.02)
    assert found["jpeg.frame_bytes"].origin == "measured" and found["jpeg.frame_bytes"].value == pytest.approx(
        14616, 1e-3
    )


def test_a_bench_says_how_fast_a_gpu_is(tmp_path: Path) -> None:
    found = collect_inputs(load_config(None, SMALL), ask(bench=bench_report(tmp_path))).inputs
    assert found["gpu_clips"].value == 300 and found["gpu_clips"].origin == "measured"
    loader = bench_report(tmp_path, what="loader", summary={"loader": {"clips_per_second": {"median": 50.0}}})
    found = collect_inputs(load_config(None, SMALL), ask(bench=loader, codecs=["h264"])).inputs
    assert found["h264.loader_clips"].value == 25 and "gpu_clips" not in found


def test_what_cannot_be_planned_is_refused(tmp_path: Path) -> None:
    config = load_config(None, SMALL)
    with pytest.raises(ConfigError, match=r"train.batch_size=512: must be a multiple of --gpus 96"):
        collect_inputs(config, ask(gpus=96))
    with pytest.raises(ConfigError, match="must be a multiple of --gpus-per-node 8"):
        collect_inputs(config, ask(gpus=12))
    with pytest.raises(ConfigError, match="--videos and --mean-seconds"):
        collect_inputs(config, ask(videos=None))
    with pytest.raises(ConfigError, match=r"must be at least train.batch_size=512"):
        collect_inputs(config, ask(videos=100.0))
    with pytest.raises(ConfigError, match="copy keeps the sources unchanged"):
        collect_inputs(config, ask(codecs=["copy"]))
    found = collect_inputs(config, ask(codecs=["remux"], source_bit_rate=1e6, source_group=120.0)).inputs
    assert found["remux.frame_bytes"].origin == "given" and found["remux.frames_read"].value > 100
    with pytest.raises(ConfigError, match=r"--gop: the dry run of .* has already chosen it"):
        collect_inputs(config, ask(codec_options={"gop": 8}, dry_run=dry_report(tmp_path)))
    with pytest.raises(ConfigError, match="on a CPU"):
        collect_inputs(config, ask(bench=bench_report(tmp_path, machine={"device": "cpu"})))
    with pytest.raises(ConfigError, match=r"measured with augment\.size=32, but the plan has 64"):
        collect_inputs(load_config(None, [*SMALL, "augment.size=64"]), ask(bench=bench_report(tmp_path)))
    with pytest.raises(ConfigError, match="not a report of `rhofast shard"):
        collect_inputs(config, ask(dry_run=bench_report(tmp_path)))


def test_the_command_prints_a_plan_and_writes_all_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    target = tmp_path / "plan.json"
    command = "plan --videos 1e6 --mean-seconds 26 --gpus 64 --codec jpeg,h264 --epochs 100 --sources"
    settings_ = [part for one in SMALL for part in ("--set", one)]
    app([*command.split(), *settings_, "--out", str(target)], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "utilization of GPU decoders" in printed and "Inputs" in printed and "jpeg: " in printed
    plan = json.loads(target.read_text())
    assert [one["codec"] for one in plan["codecs"]] == ["jpeg", "h264"]
    assert plan["facts"]["steps"]["value"] == 100 * (10**6 // 512)
    every = [*plan["facts"].values(), *(fact for one in plan["codecs"] for fact in one["facts"].values())]
    assert all(one["origin"] in ("given", "measured", "default") and one["unit"] for one in every)
    assert all(name in plan["inputs"] for one in every for name in one["basis"])


BY_RANGES = {"jpeg__requests": 14.0, "jpeg__frames_fetched": 17.0, "request_rate": 5500.0, "prefixes": 2.0}


def test_by_ranges_needed_bytes_travel_and_requests_have_a_limit() -> None:
    rate = 16_000  # videos per second
    plan = planned(remote=True, ranges=True, request_cost=0.4e-6, **BY_RANGES)
    assert fact(plan, "requests_in_all") == pytest.approx(rate * 14)
    assert fact(plan, "ranges_in_all") == pytest.approx(rate * 17 * 15000)
    assert fact(plan, "ranges_per_node") == pytest.approx(rate * 17 * 15000 / 8)
    assert fact(plan, "request_cost") == pytest.approx(9760 * 512 * 14 * 0.4e-6)
    assert shares(plan)["requests to the store"] == pytest.approx(rate * 14 / (5500 * 2))
    assert shares(plan)["network to storage, per node"] == pytest.approx(rate * 17 * 15000 / 8 / 10e9)
    assert shares(plan)["cache space of a node"] == pytest.approx(5e5 * (600 * 8.25 + 120) / 50e9)
    assert fact(plan, "slowdown") == pytest.approx(rate * 14 / 11000)  # the requests are the limit
    (sentence,) = [line for line in plan.codecs[0].advice if line.startswith("Highest utilization")]
    assert "by range requests: requests to the store at 2,036 %;" in sentence and sentence.endswith(
        "Planned: by range requests (data.remote)."
    )
    more = planned(remote=True, ranges=True, **{**BY_RANGES, "prefixes": 64.0})
    assert shares(more)["requests to the store"] < 1 and fact(more, "slowdown") == 1
    assert "request_cost" not in more.codecs[0].facts and "requests_in_all" not in planned().codecs[0].facts


def test_auto_takes_whole_shards_if_they_are_kept_and_ranges_would_fetch_more() -> None:
    whole = 5e5 * 600 * 15000 + 5e5 * (600 * 8.25 + 120)

    def way(**changes: float | None) -> str:
        plan = planned(remote=True, ranges=None, **BY_RANGES, **changes)
        return plan.codecs[0].advice[-1 if "first epoch" not in plan.codecs[0].advice[-1] else -2]

    assert "Planned: by range requests" in way(cache=whole * 0.99)
    assert "Planned: by range requests" in way(cache=whole * 1.01)  # 10 epochs of a 35th
    assert "Planned: as whole shards" in way(cache=whole * 1.01, epochs=40.0)


def test_requests_and_bytes_of_clips_are_counted_with_the_gap() -> None:
    codec, clips = JpegCodec(), ClipConfig(num_clips=1, num_frames=8, frame_stride=8)
    units = units_of(codec, 600)
    assert range_cost(clips, codec, units, 30.0, gap=6_900, sizes=[1000]) == (8, 8_000)
    assert range_cost(clips, codec, units, 30.0, gap=8_000, sizes=[1000]) == (1, 63_000)  # up to eight lie between two
    # One video in two has frames so large that nothing is joined.
    assert range_cost(clips, codec, units, 30.0, gap=8_000, sizes=[1000, 3000]) == (4.5, (63_000 + 24_000) / 2)


def uneven_rows(codec: Codec, count: int, frames: int, mean: float) -> list[IndexRow]:
    """Return samples whose frames differ in size: from sample to sample, from scene to scene, and one by one."""
    draw, rows = np.random.default_rng(0), []
    for _ in range(count):
        units = units_of(codec, frames)
        scenes = np.repeat(draw.normal(0, 0.3, 1 + frames // 60), 60)[units.frame]
        factor = np.exp(draw.normal(0, 0.4) + scenes + draw.normal(0, 0.1, len(units.size)))
        size = np.maximum(1, units.size / 1000 * mean * factor).astype(np.int32)
        units = replace(units, size=size, offset=np.cumsum(size, dtype=np.int64) - size)
        facts = {"label": None, "source_digest": bytes(16), "offset": 0, "size": int(size.sum()), "fps": 30.0}
        rows.append(IndexRow(key="k", **facts, num_frames=frames, width=352, height=256, units=units))  # type: ignore[arg-type]
    return rows


@pytest.mark.parametrize(("name", "mean"), [("jpeg", 14_600.0), ("h264", 2_900.0), ("hevc", 2_100.0)])
def test_requests_and_bytes_by_ranges_are_those_of_an_index_of_uneven_sizes(name: str, mean: float) -> None:
    codec, clips, frames = build_codec({"name": name}), ClipConfig(num_clips=2, num_frames=8, frame_stride=8), 900
    rows, known = uneven_rows(codec, 256, frames, mean), units_of(codec, frames)
    plan = training_clips(rows, np.arange(len(rows)), clips, seed=1, epoch=0).frames
    sizes = frame_sizes(rows)
    assert sizes == sorted(sizes) and np.mean(sizes) == pytest.approx(
        sum(row.size for row in rows) / 256 / frames, 0.02
    )
    for gap in (0, 16_000, 32_000, 64_000, 128_000):
        requests = fetched = 0
        for row, wanted in zip(rows, plan, strict=True):
            pieces = codec.units_for(row.units, frames, np.unique(wanted))
            spans = zip(row.units.offset[pieces].tolist(), row.units.size[pieces].tolist(), strict=True)
            joined, _ = join_spans(list(spans), gap)
            requests, fetched = requests + len(joined), fetched + sum(size for _, size in joined)
        found = range_cost(clips, codec, known, 30.0, gap=gap, sizes=sizes)
        assert found == pytest.approx((requests / 256, fetched / 256), rel=0.1), gap
        if name == "jpeg" and gap == 128_000:  # of which the mean size knows nothing
            even = range_cost(clips, codec, known, 30.0, gap=gap, sizes=[float(np.mean(sizes))])
            assert even[1] > 1.3 * found[1] or even[1] < 0.7 * found[1]


def test_without_a_dry_run_sizes_have_the_known_mean_and_a_usual_spread() -> None:
    sizes = spread_sizes(10_000.0)
    assert np.mean(sizes) == pytest.approx(10_000, 0.02) and sizes == sorted(sizes)
    assert np.std(np.log(sizes)) == pytest.approx(0.4, rel=0.05)


def test_the_dry_run_says_how_sizes_vary(tmp_path: Path) -> None:
    path = dry_report(tmp_path)
    settings_ = [*SMALL, "data.range_gap_kb=128"]
    usual = collect_inputs(load_config(None, settings_), ask(dry_run=path, codecs=["jpeg"])).inputs
    report = json.loads(path.read_text())
    (jpeg,) = [one for one in report["codecs"] if one["codec"]["name"] == "jpeg"]
    jpeg["metrics"]["frame_sizes"] = [40_000.0]  # nothing is joined
    path.write_text(json.dumps(report))
    large = collect_inputs(load_config(None, settings_), ask(dry_run=path, codecs=["jpeg"])).inputs
    assert large["jpeg.requests"].value > 2 * usual["jpeg.requests"].value
    assert "measured sizes" in large["jpeg.requests"].source and "usual spread" in usual["jpeg.requests"].source
    for wrong in ([], [0.0], "x", [[1.0]]):
        jpeg["metrics"]["frame_sizes"] = wrong
        path.write_text(json.dumps(report))
        with pytest.raises(ConfigError, match="frame_sizes"):
            collect_inputs(load_config(None, settings_), ask(dry_run=path, codecs=["jpeg"]))


# ---- docs/guides/capacity_planning.md, choosing_a_setup.md ----


def lever(**options: Any) -> list[str]:
    """Return the cells of one row of the table of levers: a million videos of 26 seconds, on 128 GPUs."""
    config = load_config(None, ["train.batch_size=1024", "train.epochs=200"])
    given_options: dict[str, Any] = {"gpus": 128, "videos": 1e6, "mean_seconds": 26.0, "codec_options": {}, **options}
    found = collect_inputs(config, PlannerOptions(**given_options))
    one = plan_capacity(found.inputs, found.codecs, remote=False).codecs[0]
    shares = {limit.name: amount(limit.share, "share") for limit in one.limits}
    names = ("shard_bytes", "ingest", "read_per_video", "decoded_per_video", "read_in_all", "fetched_per_node")
    cells = [amount(one.facts[name].value, one.facts[name].unit) for name in names]
    return [*cells, shares["GPU decoders"]]


LEVERS = {
    "`jpeg`": {"codecs": ["jpeg"]},
    "`jpeg`, short side 192": {"codecs": ["jpeg"], "short_side": 192},
    "`jpeg`, 10 frames/s": {"codecs": ["jpeg"], "fps": 10.0},
    "`h264`, gop 1": {"codecs": ["h264"], "codec_options": {"gop": 1}},
    "`h264`, gop 4": {"codecs": ["h264"], "codec_options": {"gop": 4}},
    "`h264`, gop 16": {"codecs": ["h264"]},
    "`h264`, gop 32": {"codecs": ["h264"], "codec_options": {"gop": 32}},
    "`h264`, gop 16, short side 192": {"codecs": ["h264"], "short_side": 192},
    "`h264`, gop 4, 10 frames/s": {"codecs": ["h264"], "codec_options": {"gop": 4}, "fps": 10.0},
    "`hevc`, gop 16": {"codecs": ["hevc"]},
}


def rows_of(lines: list[str], labels: list[str]) -> list[str]:
    """Return the table by codec with the rows of these labels and all utilizations, and the advice below it."""
    kept = []
    for line in lines[lines.index("By codec, at full GPU speed") :]:
        label = line.removeprefix("│").partition("│")[0].strip()
        if line.startswith("Note: "):
            break
        if line.startswith("The planner assumes"):
            continue
        if not line.startswith("│") or label in labels or label.startswith("utilization of"):
            kept.append(line)
            labels = [one for one in labels if one != label]
    assert not labels, f"rows that are not in the table: {labels}"
    return kept


@pytest.mark.parametrize(("name", "plans"), [("capacity_planning", 6), ("choosing_a_setup", 2)])
def test_the_guides_show_what_the_command_prints(
    name: str, plans: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their blocks that begin with `$ rhofast plan`, and its table of levers, are output of the program.

    A comment `<!-- rows: LABEL; LABEL -->` before a block names the rows that it shows; others are left out.
    RHOFAST_WRITE_DOCS=1 writes them again.
    """
    counts: dict[str, Workload] = {}

    def count_once(config: Config, clips: int) -> Workload:
        step = f"{config.clips} {config.augment.size} {config.backbone} {config.method} {config.optim.name} {clips}"
        return counts[step] if step in counts else counts.setdefault(step, count_workload(config, clips))

    root = ROOT
    monkeypatch.setattr("rhofast.analysis.capacity.inputs.count_workload", count_once)
    monkeypatch.chdir(root)
    monkeypatch.setenv("COLUMNS", "110")

    def run(block: re.Match[str]) -> str:
        mark, rows, command = block.groups()
        app(shlex.split(command.replace("\\\n", " "))[2:], standalone_mode=False)
        lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        if rows is not None:
            lines = ["...", *rows_of(lines, rows.split("; ")), "..."]
        return "\n".join([f"{mark or ''}```console", command, *lines, "```"])

    guide = root / "docs" / "guides" / f"{name}.md"
    text = guide.read_text(encoding="utf-8")
    form = r"(<!-- rows: ([^\n]*) -->\n)?```console\n(\$ rhofast plan (?:[^\n]*\\\n)*[^\n]*)\n.*?```"
    made = re.sub(form, run, text, flags=re.DOTALL)
    rows = ""
    if "<!-- levers -->" in text:
        rows = "".join(f"| {row} | {' | '.join(lever(**options))} |\n" for row, options in LEVERS.items())
    made = re.sub(r"(?<=<!-- levers -->\n\n)(\|[^\n]*\n\|[^\n]*\n)(?:\|[^\n]*\n)*", lambda head: head[1] + rows, made)
    if os.environ.get("RHOFAST_WRITE_DOCS") == "1":
        guide.write_text(made, encoding="utf-8")
    assert made == guide.read_text(encoding="utf-8")
    assert made.count("$ rhofast plan") == plans


@pytest.mark.parametrize(
    "value, unit, text",
    [
        (0.34, "share", "34 %"),
        (12.5, "share", "1,250 %"),
        (90.0, "s", "90 s"),
        (7200.0, "s", "2.0 h"),
        (1.5e12, "B/s", "1.5 TB/s"),
        (1234567.0, "shards", "1,234,567 shards"),
        (1.0, "nodes", "1 node"),
        (1.0, "clips/s", "1 clips/s"),
        (math.inf, "s", "infinite"),
    ],
)
def test_amounts_read_well(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text
