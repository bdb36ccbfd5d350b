"""The trainer: continuing equals never stopping, two processes equal one, and a run folder is not overwritten."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_PAGE

from rhofast.checkpoint import latest_checkpoint, load_checkpoint, untrained_backbone
from rhofast.config import Config, override_config, parse_config
from rhofast.data.index import ShardSet
from rhofast.errors import ConfigError, ResumeError
from rhofast.train import train


def config(shards: ShardSet, out: Path, **train_options: Any) -> Config:
    values = {
        "name": "run",
        "out": str(out),
        "data": {"train": str(shards.root), "threads": 2, "decode_threads": 1},
        "clips": {"num_frames": 2, "frame_stride": 2, "fps": 12},
        "augment": {"size": 16},
        "backbone": {"name": "slow_r18", "width": 4},
        "method": {"name": "byol", "hidden": 16, "out": 8},
        "optim": {"base_lr": 0.1, "warmup_epochs": 0.5},
        "train": {"batch_size": 4, "steps": 5, "log_steps": 1, "checkpoint_steps": 2, **train_options},
    }
    return parse_config(values, where="test")


def metrics(run: Path, kind: str = "step") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_run_leaves_metrics_checkpoints_and_its_configuration(shards: ShardSet, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    outcome = train(config(shards, tmp_path, keep_checkpoints=2), on_log=seen.append)
    assert (outcome.step, outcome.steps, outcome.finished) == (5, 5, True)
    steps = metrics(tmp_path / "run")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    for line in steps:
        assert -4 <= line["loss"] <= 4 and line["grad_norm"] > 0 and 0 <= line["data_wait_share"] <= 1
        assert line["clips_per_second"] > 0 and 0 < line["lr"] < 0.1 and line["bad_samples"] == 0
    assert [line["kind"] for line in seen] == ["start", *["step"] * 5]
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["latest", "step-00000004", "step-00000005"]
    assert any((tmp_path / "run" / "tensorboard").rglob("events*"))
    assert parse_config(json.loads((tmp_path / "run" / "config.json").read_text()), where="x").train.steps == 5


def test_a_resumed_run_ends_with_the_same_bits(shards: ShardSet, tmp_path: Path) -> None:
    straight = train(config(shards, tmp_path / "straight"))
    train(config(shards, tmp_path / "resumed", steps=5, checkpoint_steps=3))
    whole = tmp_path / "resumed" / "run" / "checkpoints"
    for path in (whole / "step-00000005").iterdir():  # as if the process had died after step 3
        path.unlink()
    (whole / "step-00000005").rmdir()
    resumed = train(config(shards, tmp_path / "resumed", checkpoint_steps=3), resume=True)
    assert metrics(resumed.run, "start")[-1]["step"] == 3
    left, right = (load_checkpoint(latest_checkpoint(outcome.run) or Path()) for outcome in (straight, resumed))
    assert left.method.keys() == right.method.keys()
    assert all(torch.equal(value, right.method[key]) for key, value in left.method.items())
    assert left.loader == right.loader
    for number, slots in left.optimizer["state"].items():
        assert all(torch.equal(slots[name], right.optimizer["state"][number][name]) for name in slots)


def test_resume_begins_where_there_is_nothing_and_ends_where_all_is_done(shards: ShardSet, tmp_path: Path) -> None:
    assert train(config(shards, tmp_path, steps=2), resume=True).step == 2
    again = train(config(shards, tmp_path, steps=2), resume=True)
    assert again.finished and [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def test_an_existing_run_is_not_overwritten(shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match="the run folder exists"):
        train(config(shards, tmp_path))
    assert not list((tmp_path / "run").iterdir())


def test_a_run_that_cannot_begin_leaves_no_folder(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not fit into 13 samples"):
        train(config(shards, tmp_path, batch_size=64))
    assert not (tmp_path / "run").exists()


def test_what_the_method_cannot_use_is_a_config_error(shards: ShardSet, tmp_path: Path) -> None:
    moco = override_config(config(shards, tmp_path), ["method.name=moco", "method.queue=7"])
    with pytest.raises(ConfigError, match=r"method: a step makes 8 keys, more than the queue's 7"):
        train(moco)
    with pytest.raises(ConfigError, match=r"train.accumulate: \d+ batch norms"):
        train(config(shards, tmp_path, accumulate=2))
    assert not (tmp_path / "run").exists()


def test_micro_batches_take_the_same_batches_in_the_same_number_of_steps(shards: ShardSet, tmp_path: Path) -> None:
    train(config(shards, tmp_path / "whole", steps=2))
    train(config(shards, tmp_path / "split", steps=2, accumulate=2, micro_batch_norm=True))
    whole, split = (metrics(tmp_path / name / "run") for name in ("whole", "split"))
    assert [line["step"] for line in split] == [1, 2] and [line["lr"] for line in split] == [x["lr"] for x in whole]
    assert all(-4 <= line["loss"] <= 4 and line["grad_norm"] > 0 for line in split)
    assert [line["loss"] for line in split] != [line["loss"] for line in whole]  # statistics of two videos, not of four


def test_gradients_are_clipped_to_a_norm(shards: ShardSet, tmp_path: Path) -> None:
    """With plain SGD a step of clipped gradients is no longer than rate times norm."""
    moved = {}
    for clip in (None, 1e-3):
        run = config(shards, tmp_path / str(clip), steps=1)
        values = {"name": "sgd", "base_lr": 100.0, "momentum": 0.0, "nesterov": False, "warmup_epochs": 0.0}
        optim = run.optim.model_copy(update={**values, "weight_decay": 0.0, "clip": clip})
        run = run.model_copy(update={"optim": optim})
        before = untrained_backbone(run).state_dict()
        outcome = train(run)
        after = load_checkpoint(latest_checkpoint(outcome.run) or Path()).method
        names = [name for name in before if "running" not in name and "num_batches" not in name]
        moved[clip] = float(torch.stack([(after[f"backbone.{name}"] - before[name]).norm() for name in names]).norm())
    assert 0 < moved[1e-3] <= 100 * 4 / 64 * 1e-3 * (1 + 1e-4) < moved[None]


def test_a_method_that_holds_back_its_first_updates_moves_on_afterwards(shards: ShardSet, tmp_path: Path) -> None:
    """MoCo with places for 8 videos: no update in the first two steps of four, weight decay neither."""
    base = override_config(
        config(shards, tmp_path, steps=3, checkpoint_steps=1, keep_checkpoints=3),
        ["method.name=moco", "method.queue=8", "optim.weight_decay=0.1"],
    )
    outcome = train(base)
    assert [line["grad_norm"] > 0 for line in metrics(outcome.run)] == [False, False, True]
    folders = [outcome.run / "checkpoints" / f"step-{step:08d}" for step in (1, 2, 3)]
    first, second, third = (load_checkpoint(folder).method["projection.0.weight"] for folder in folders)
    assert torch.equal(first, second) and not torch.equal(second, third)


def test_another_configuration_is_not_continued(shards: ShardSet, tmp_path: Path) -> None:
    train(config(shards, tmp_path, steps=1))
    other = config(shards, tmp_path).model_copy(update={"seed": 3})
    with pytest.raises(ResumeError, match="seed was 0, is 3"):
        train(other, resume=True)


def test_a_longer_run_of_the_same_configuration_is(shards: ShardSet, tmp_path: Path) -> None:
    train(config(shards, tmp_path, steps=1))
    assert train(config(shards, tmp_path, steps=2, log_steps=2), resume=True).step == 2


def test_a_signal_saves_and_stops(shards: ShardSet, tmp_path: Path) -> None:
    def interrupt(line: dict[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    outcome = train(config(shards, tmp_path), on_log=interrupt)
    assert (outcome.step, outcome.finished) == (2, False)
    assert latest_checkpoint(outcome.run) == tmp_path / "run" / "checkpoints" / "step-00000002"
    assert signal.getsignal(signal.SIGTERM) is before


def test_knn_runs_before_between_and_after(shards: ShardSet, tmp_path: Path) -> None:
    with_test = config(shards, tmp_path, steps=4, knn_steps=2)
    with_test = with_test.model_copy(update={"data": with_test.data.model_copy(update={"test": str(shards.root)})})
    outcome = train(with_test)
    checks = metrics(outcome.run, "knn")
    assert [line["step"] for line in checks] == [0, 2, 4]
    assert all(line["samples"] == 13 for line in checks)


def test_two_processes_train_on_the_batches_of_one(shards: ShardSet, tmp_path: Path) -> None:
    page = tmp_path / "tiny.toml"
    page.write_text(TINY_PAGE)
    losses = []
    for processes in (1, 2):
        sets = [
            f"data.train={shards.root}",
            f"out={tmp_path / str(processes)}",
            "name=run",
            "train.steps=5",
            "train.log_steps=1",
        ]
        command = ["rhofast", "train", str(page), *(text for value in sets for text in ("--set", value))]
        launcher = [sys.executable, "-m"]
        if processes == 2:  # `--multi_gpu` is the launcher's word for several processes, here on the CPU
            launcher += ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
            launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        run = tmp_path / str(processes) / "run"
        assert metrics(run, "start")[0]["world_size"] == processes
        losses.append([line["loss"] for line in metrics(run)])
    assert len(losses[0]) == 5
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)


def test_networks_are_compiled_on_request(shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    train(config(shards, tmp_path / "without", steps=1))
    assert not compiled
    train(config(shards, tmp_path / "with", steps=1, compile=True))
    assert sorted(compiled) == ["MLP", "MLP", "MLP", "Slow", "Slow"]  # trained and key network, and the predictor
