"""What a run reports: numbers on every line, warnings and advice where there is reason, trackers."""

import errno
import json
import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rhofast.checkpoint.run_lines import read_metrics
from rhofast.config.load import load_config
from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.outage_news import OutageNews
from rhofast.data.loader.stats import LoaderStats
from rhofast.data.loader.threaded_pipeline import StageClock
from rhofast.errors import ConfigError
from rhofast.training.logger import MetricsLogger
from rhofast.training.metrics import STEP_PHASES
from rhofast.training.metrics_file import MetricsFile
from rhofast.training.trainer import train
from tests.helpers.shards import TINY_PAGE


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny(shards: ShardSet, tmp_path: Path) -> Callable[..., Config]:
    """Return the tiny configuration with overrides, over the tiny set."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_PAGE)

    def build(**options: Any) -> Config:
        sets = {"out": tmp_path, "data.train": shards.root, "data.test": shards.root}
        sets |= {f"train.{name}": json.dumps(value) for name, value in options.items()}
        return load_config(path, [f"{key}={value}" for key, value in sets.items()])

    return build


class TrainLoader:
    """A loader with counters that a test sets: every look at them is 10 s later, with `wait_s` without data."""

    decoders = ("jpeg is decoded on the host",)
    shards = SimpleNamespace(sets=[SimpleNamespace(transport=""), SimpleNamespace(transport="ranges: a reason")])
    write_error: OSError | None = None
    outages = OutageNews([], 600.0)

    def __init__(self, waits: list[float]) -> None:
        self._waits, self._looks, self._wait_s = waits, 0, 0.0

    @property
    def stats(self) -> LoaderStats:
        if self._looks:  # the first look is before the run
            self._wait_s += self._waits[min(self._looks, len(self._waits)) - 1]
        busy = StageClock(busy=9.0 * self._looks, starved=0.0, blocked=1.0 * self._looks)
        seconds, self._looks = 10.0 * self._looks, self._looks + 1
        counts = dict.fromkeys(("clips", "frames", "frames_decoded", "bytes_read", "bytes_used", "bad"), 0)
        return LoaderStats(
            **counts, batches=self._looks, seconds=seconds, wait_s=self._wait_s, stages={"read": busy, "decode": busy}
        )


def open_logger(config: Config, loader: Any, on_log: Callable[[dict[str, Any]], None] | None = None) -> MetricsLogger:
    config.folder.mkdir()
    accelerator = Accelerator(cpu=True)
    logger = MetricsLogger(config, accelerator, torch.nn.Linear(1, 1), loader, 100, on_log)
    logger.begin(step=0, time="2026-01-02T03:04:05+00:00")
    return logger


def values(**more: float) -> dict[str, torch.Tensor]:
    numbers = {"loss": 1.0, "lr": 0.1, "grad_norm": 2.0, "feature_std": 0.7, **more}
    return {name: torch.tensor(value) for name, value in numbers.items()}


def test_a_run_s_lines_have_every_number(tiny: Callable[..., Config]) -> None:
    outcome = train(tiny(steps=4, log_steps=2, knn_steps=4))
    lines = read_metrics(outcome.run / "metrics.jsonl")
    assert lines[0]["kind"] == "start" and lines[0]["decoders"] == ["jpeg is decoded on the host"]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [2, 4]
    for line in steps:
        assert line["loss_pass0"] + line["loss_pass1"] == pytest.approx(line["loss"], abs=1e-5)
        assert all(line[f"{name}_seconds"] >= 0 for name in STEP_PHASES)
        assert min(line["forward_seconds"], line["backward_seconds"], line["optimizer_seconds"]) > 0
        assert sum(line[f"{name}_seconds"] for name in STEP_PHASES) == pytest.approx(line["step_seconds"], rel=0.05)
        assert line["data_seconds"] / line["step_seconds"] == pytest.approx(line["data_wait_share"], abs=0.02)
        assert 0 <= line["readiness"] <= 1 and 1e8 < line["memory_bytes"] < 1e11 and line["bad_samples"] == 0
        assert {"lr", "ema_momentum", "grad_norm", "clips_per_second", "feature_std", "epoch", "seconds"} <= set(line)
        assert "communication_seconds" not in line and "device_memory_bytes" not in line
    shown = EventAccumulator(str(outcome.run / "tensorboard")).Reload()
    assert {"loss", "lr", "data_wait_share", "forward_seconds", "knn_top1"} <= set(shown.Tags()["scalars"])
    assert [event.step for event in shown.Scalars("loss")] == [2, 4]


def test_steps_that_are_taken_again_are_shown_once(tiny: Callable[..., Config]) -> None:
    config = tiny(steps=4, log_steps=1, checkpoint_steps=2)
    run = train(config).run
    shutil.rmtree(run / "checkpoints" / "step-00000004")  # as if the process had died before it was written
    train(config, resume=True)
    shown = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in shown.Scalars("loss")] == [1, 2, 3, 4]
    steps = [line["step"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "step"]
    assert steps == [1, 2, 3, 4, 3, 4]


def test_a_collapse_is_reported_once_and_again_after_it_was_over(tiny: Callable[..., Config]) -> None:
    seen: list[dict[str, Any]] = []
    logger = open_logger(tiny(), TrainLoader([0.0]), seen.append)
    for step, spread in enumerate([0.05, 0.5, 0.05, 0.05, 0.04, 0.03, 0.5, 0.05, 0.05, 0.05], start=1):
        logger.log(step, 0.1, values(feature_std=spread))
    warnings = [line for line in seen if line["kind"] == "warning"]
    assert [line["step"] for line in warnings] == [5, 10]
    assert "feature_std is 0.040" in warnings[0]["text"]
    assert [line["step"] for line in read_metrics(logger.config.folder / "metrics.jsonl") if "text" in line] == [5, 10]


def test_advice_comes_once_when_steps_wait_and_in_the_end(tiny: Callable[..., Config]) -> None:
    seen: list[dict[str, Any]] = []
    logger = open_logger(
        tiny(), TrainLoader([9.0, 0.1, 4.0, 4.0]), seen.append
    )  # the first window holds the first batch's wait
    for step in range(1, 5):
        logger.step(step, 8)
        logger.log(step, 0.1, values())
    logger.end(4)
    advice = [line for line in seen if line["kind"] == "advice"]
    assert [line["step"] for line in advice] == [3, 4]
    assert advice[0]["text"].startswith("40.0% of the last 1 steps went by waiting for data: reading is the limit (90%")
    assert advice[1]["text"].startswith("reading is the limit")


def test_a_run_that_never_waits_is_advised_in_the_end_only(tiny: Callable[..., Config]) -> None:
    seen: list[dict[str, Any]] = []
    logger = open_logger(tiny(), TrainLoader([0.0]), seen.append)
    for step in range(1, 5):
        logger.log(step, 0.1, values())
    logger.end(4)
    assert [(line["step"], line["text"][:27]) for line in seen if line["kind"] == "advice"] == [
        (4, "the loader is not the limit")
    ]


def test_a_full_disk_costs_lines_not_the_run(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    logger = open_logger(tiny(), TrainLoader([0.0]), seen.append)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "write", full)
        for step in (1, 2):
            logger.log(step, 0.1, values())
    logger.log(3, 0.1, values())
    warnings = [line["text"] for line in seen if line["kind"] == "warning"]
    assert warnings == ["metrics.jsonl cannot be written, and numbers are lost: No space left on device"]
    lines = read_metrics(logger.config.folder / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "step"] == [3]
    assert [line["step"] for line in seen if line["kind"] == "step"] == [1, 2, 3]


def test_chosen_steps_are_traced_with_the_loader(tiny: Callable[..., Config]) -> None:
    outcome = train(tiny(steps=12, log_steps=4, profile_steps=[3, 10]))
    events = json.loads((outcome.run / "trace.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert [f"step {step}" in names for step in range(1, 13)] == [3 <= step <= 10 for step in range(1, 13)]
    assert {*STEP_PHASES[:4], "loader: plan", "loader: read", "loader: decode"} <= set(names)
    assert names.count("backward") == 8 * 2


def test_knn_may_be_counted_in_epochs(tiny: Callable[..., Config]) -> None:
    outcome = train(tiny(steps=5, knn_epochs=0.7))  # three steps an epoch
    lines = read_metrics(outcome.run / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "knn"] == [0, 2, 4, 5]


def test_a_config_has_one_of_knn_steps_and_knn_epochs_and_the_last_word_counts(tiny: Callable[..., Config]) -> None:
    section = tiny(knn_steps=5, knn_epochs=2.0).train
    assert (section.knn_steps, section.knn_epochs) == (None, 2.0)
    with pytest.raises(ConfigError, match=r"profile_steps=\[5, 4\] must be"):
        tiny(profile_steps=[5, 4])


def rank_of_two(rank: int, path: str, sets: list[str], port: int) -> None:
    """Log from one of two ranks: rank 1 waits for data, and its loss differs."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    config = load_config(Path(path), sets)
    config.folder.mkdir(exist_ok=True)
    accelerator = Accelerator(cpu=True)
    logger = MetricsLogger(config, accelerator, torch.nn.Linear(1, 1), TrainLoader([0.0, 2.0 * rank]), 9, None)  # type: ignore[arg-type]
    logger.begin(step=0, time="2026")
    for step in (1, 2):
        with logger.waiting(step):
            time.sleep(0.1 * rank)
        logger.step(step, 8)
        logger.log(step, 0.1, values(loss=float(rank)))
    logger.end(2)
    accelerator.end_training()


def test_ranks_report_the_mean_loss_the_longest_wait_and_the_slowest_one_s_advice(
    shards: ShardSet, tmp_path: Path
) -> None:
    path, sets = tmp_path / "tiny.toml", [f"out={tmp_path}", f"data.train={shards.root}"]
    path.write_text(TINY_PAGE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    mp.start_processes(  # type: ignore[no-untyped-call]
        rank_of_two, args=(str(path), sets, port), nprocs=2, start_method="forkserver"
    )
    lines = read_metrics(tmp_path / "tiny" / "metrics.jsonl")
    assert [line["kind"] for line in lines] == ["start", "step", "step", "advice", "advice"]
    line = lines[2]
    assert line["loss"] == 0.5 and line["data_wait_share"] > 0.5 and line["readiness"] == pytest.approx(0.8)
    assert line["data_seconds"] == pytest.approx(0.05, abs=0.03)  # the mean of 0.1 s and nothing
    assert lines[3]["text"].startswith("20.0% of the last 1 steps went by waiting for data: rank 1: reading is")
    assert lines[4]["text"].startswith("rank 1: reading is the limit")


def test_logging_costs_little_of_a_step(tiny: Callable[..., Config]) -> None:
    """Logging costs less than 2 % of 200 ms, with a window every ten steps; usually fifty times less."""
    logger = open_logger(tiny(), TrainLoader([0.0]))
    began = time.process_time()
    for step in range(1, 201):
        with logger.waiting(step):
            pass
        for phase in ("forward", "backward") * 4 + ("optimizer",):
            logger.enter(phase)
        logger.step(step, 8)
        if step % 10 == 0:
            logger.log(step, 0.1, values())
    assert (time.process_time() - began) / 200 < 0.02 * 0.2
