"""The trainer: continuing equals never stopping, two processes equal one, and a run folder is not overwritten."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors import SafetensorError

import rhofast.checkpoint.checkpoint
import rhofast.training.knn_monitor
import rhofast.training.step
import rhofast.training.trainer
from rhofast.checkpoint.backbone import untrained_backbone
from rhofast.checkpoint.backbone_file import save_backbone
from rhofast.checkpoint.checkpoint import latest_checkpoint, load_checkpoint
from rhofast.config.load import dump_config, override_config, parse_config
from rhofast.config.schema import Config, SourceConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError, NotFiniteError, ResumeError, SaveError
from rhofast.models.methods.lejepa import LeJEPA
from rhofast.training.trainer import train
from tests.helpers.shards import ROOT, TINY_PAGE


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
    assert [line["kind"] for line in seen if line["kind"] not in ("advice", "checkpoint")] == ["start", *["step"] * 5]
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["latest", "step-00000004", "step-00000005"]
    assert any((tmp_path / "run" / "tensorboard").rglob("events*"))
    assert parse_config(json.loads((tmp_path / "run" / "config.json").read_text()), where="x").train.steps == 5


VIT = [
    *("backbone.name=vit", "backbone.width=12", "backbone.depth=2", "backbone.heads=2", "backbone.patch=4"),
    *("backbone.keep=0.5", "backbone.drop_path=0.5"),  # tokens and paths are drawn in every step
    "optim.name=adamw",
]


@pytest.mark.parametrize(
    ("method", "network"), [("byol", []), ("byol", VIT), ("moco_v3", []), ("lejepa", [])], ids=lambda one: str(one)[:9]
)
def test_a_resumed_run_ends_with_the_same_bits(
    shards: ShardSet, tmp_path: Path, method: str, network: list[str]
) -> None:
    def settings(out: str, **options: Any) -> Config:
        return override_config(config(shards, tmp_path / out, **options), [f"method.name={method}", *network])

    straight = train(settings("straight"))
    train(settings("resumed", steps=5, checkpoint_steps=3))
    whole = tmp_path / "resumed" / "run" / "checkpoints"
    for path in (whole / "step-00000005").iterdir():  # as if the process had died after step 3
        path.unlink()
    (whole / "step-00000005").rmdir()
    resumed = train(settings("resumed", checkpoint_steps=3), resume=True)
    assert metrics(resumed.run, "start")[-1]["step"] == 3
    left, right = (load_checkpoint(latest_checkpoint(outcome.run) or Path()) for outcome in (straight, resumed))
    assert left.method.keys() == right.method.keys()
    assert all(torch.equal(value, right.method[key]) for key, value in left.method.items())
    assert left.loader == right.loader
    for number, slots in left.optimizer["state"].items():
        assert all(torch.equal(slots[name], right.optimizer["state"][number][name]) for name in slots)


def test_a_run_begins_with_the_weights_of_a_file_which_a_resumed_one_does_not_need(
    shards: ShardSet, tmp_path: Path
) -> None:
    stored = untrained_backbone(override_config(config(shards, tmp_path), ["seed=5"]))
    file = tmp_path / "begin.safetensors"
    save_backbone(stored, file, name="slow_r18", options={"width": 4}, card={"origin": "elsewhere"})
    still = ["optim.base_lr=1e-9", "optim.warmup_lr=0.0", "train.max_hours=1e-9"]
    run = override_config(config(shards, tmp_path, init_from=str(file)), still)
    outcome = train(run)
    assert not outcome.finished
    assert f"the backbone begins with {file}: elsewhere" in [line["text"] for line in metrics(outcome.run, "note")]
    saved = load_checkpoint(latest_checkpoint(outcome.run) or Path()).method
    for name, value in stored.named_parameters():
        for network in ("backbone", "momentum_backbone"):
            assert torch.allclose(saved[f"{network}.{name}"], value, atol=1e-6)
    file.unlink()
    resumed = train(override_config(run, ["train.max_hours=1.0"]), resume=True)
    assert resumed.finished and len(metrics(resumed.run, "note")) == 2  # the second says that max_hours has changed


def test_a_method_learns_seed_and_step(shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(LeJEPA, "begin_step", lambda _, progress: seen.append((progress.seed, progress.step)))
    train(override_config(config(shards, tmp_path, steps=2), ["method.name=lejepa", "seed=7"]))
    assert seen == [(7, 0), (7, 1)]


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
    with pytest.raises(ConfigError, match=r"method.queue=7 must hold the keys of one step \(got 8\)"):
        train(moco)
    with pytest.raises(ConfigError, match=r"train.accumulate=2 would change the statistics of \d+ batch norms"):
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
    first, second, third = (load_checkpoint(folder).method["projector.0.weight"] for folder in folders)
    assert torch.equal(first, second) and not torch.equal(second, third)


def test_another_configuration_is_not_continued(shards: ShardSet, tmp_path: Path) -> None:
    train(config(shards, tmp_path, steps=1))
    other = config(shards, tmp_path).model_copy(update={"seed": 3})
    with pytest.raises(ResumeError, match="seed was 0, is 3"):
        train(other, resume=True)


def test_changes_of_the_mathematics_must_be_accepted_and_all_are_reported(shards: ShardSet, tmp_path: Path) -> None:
    """The length is such a setting: the learning rate falls to 0 at the end."""
    train(config(shards, tmp_path, steps=1))
    with pytest.raises(ResumeError, match=r"train\.steps was 1, is 2 \(.* --accept-changes"):
        train(config(shards, tmp_path, steps=2, log_steps=2), resume=True)
    assert train(config(shards, tmp_path, steps=1, log_steps=2), resume=True).finished
    notes = [line["text"] for line in metrics(tmp_path / "run", "note")]
    assert notes == ["changed: train.log_steps was 1, is 2"]
    assert train(config(shards, tmp_path, steps=2), resume=True, accept_changes=True).step == 2
    notes = [line["text"] for line in metrics(tmp_path / "run", "note")][1:]
    assert notes == ["changed, and accepted: train.steps was 1, is 2"]


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_continued(shards: ShardSet, tmp_path: Path) -> None:
    straight = train(config(shards, tmp_path / "straight"))
    train(config(shards, tmp_path / "damaged", checkpoint_steps=3))
    folder = tmp_path / "damaged" / "run" / "checkpoints"
    content = bytearray((folder / "step-00000005" / "method.safetensors").read_bytes())
    content[-7] ^= 1
    (folder / "step-00000005" / "method.safetensors").write_bytes(content)
    resumed = train(config(shards, tmp_path / "damaged", checkpoint_steps=3), resume=True)
    assert metrics(resumed.run, "start")[-1]["step"] == 3
    (note,) = metrics(resumed.run, "note")
    assert note["text"] == (
        "checkpoint step-00000005 is damaged (method.safetensors is damaged): now damaged-step-00000005; "
        "continuing from step-00000003"
    )
    names = ("method.safetensors", "optimizer.safetensors")
    for name in names:
        ours, theirs = (run / "checkpoints" / "step-00000005" / name for run in (resumed.run, straight.run))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_full_disk_is_reported_and_training_goes_on(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rhofast.checkpoint.checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        if "step-00000004" in str(path):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(tensors, path)

    monkeypatch.setattr("rhofast.checkpoint.checkpoint.save_file", full)
    seen: list[dict[str, Any]] = []
    outcome = train(config(shards, tmp_path, keep_checkpoints=9), on_log=seen.append)
    assert outcome.finished
    (warning,) = [line for line in seen if line["kind"] == "warning"]
    assert warning["text"].startswith("the checkpoint of step 4 was not written") and "No space" in warning["text"]
    assert warning["text"].endswith("; that of step 2 is whole")
    names = sorted(path.name for path in (outcome.run / "checkpoints").iterdir())
    assert names == ["latest", "step-00000002", "step-00000005"]


def test_a_run_whose_last_checkpoint_is_not_written_has_failed(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rhofast.checkpoint.checkpoint.save_file", full)
    with pytest.raises(SaveError, match=r"of step 2, was not written \(there is no earlier one: .* --resume"):
        train(config(shards, tmp_path, steps=2))
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def poisoned(monkeypatch: pytest.MonkeyPatch, bad: set[int], where: str) -> None:
    """Give the steps in `bad` (from 1) a loss that is not a number, or gradients alone."""
    real = rhofast.training.step.forward_backward

    def forward_backward(model: Any, method: Any, pixels: torch.Tensor, progress: Any, **options: Any) -> Any:
        loss, logs = real(model, method, pixels, progress, **options)
        if progress.step + 1 in bad:
            next(p for p in method.parameters() if p.grad is not None).grad.fill_(float("nan"))
            loss = loss * float("nan") if where == "loss" else loss
        return loss, logs

    monkeypatch.setattr("rhofast.training.step.forward_backward", forward_backward)


@pytest.mark.parametrize(("where", "whose"), [("loss", "loss of rank 0"), ("gradients", "gradients only")])
def test_steps_that_are_not_finite_end_the_run_with_their_address(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, whose: str
) -> None:
    """13 samples in batches of 4: three steps per epoch."""
    poisoned(monkeypatch, {2, 4, 5}, where)
    with pytest.raises(NotFiniteError, match="in 2 steps in a row") as caught:
        train(config(shards, tmp_path, steps=9, max_bad_steps=2, checkpoint_steps=1))
    run = tmp_path / "run"
    assert f"step 4 (epoch 1, position 0; {whose}), step 5 (epoch 1, position 4; {whose})" in caught.value.message
    assert caught.value.hint is not None and f"rhofast show {run} --step 4 --rank 0" in caught.value.hint
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5]
    notes = [line["text"] for line in metrics(run, "warning")]
    assert notes == [f"loss or gradients of step {step} were not finite: it changed no weight" for step in (2, 4, 5)]
    assert latest_checkpoint(run) == run / "checkpoints" / "step-00000004"
    third, fourth = (load_checkpoint(run / "checkpoints" / f"step-{step:08d}") for step in (3, 4))
    trained = [name for name in third.method if name.endswith("weight") and not name.startswith("momentum_")]
    assert all(torch.equal(third.method[name], fourth.method[name]) for name in trained)  # the update was skipped
    for number, slots in third.optimizer["state"].items():
        assert all(torch.equal(slots[name], fourth.optimizer["state"][number][name]) for name in slots)


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
def test_a_step_that_is_not_finite_changes_no_weight_even_if_it_is_the_first(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    poisoned(monkeypatch, {1}, "gradients")
    run = override_config(config(shards, tmp_path, steps=2, checkpoint_steps=1), [f"optim.name={optimizer}"])
    outcome = train(run)
    assert outcome.finished
    begun = untrained_backbone(run).state_dict()
    first, second = (load_checkpoint(outcome.run / "checkpoints" / f"step-0000000{step}").method for step in (1, 2))
    names = [name for name in begun if name.endswith("weight")]
    assert all(torch.equal(begun[name], first[f"backbone.{name}"]) for name in names)
    assert all(bool(second[f"backbone.{name}"].isfinite().all()) for name in names)
    assert not all(torch.equal(begun[name], second[f"backbone.{name}"]) for name in names)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "byol", "hidden": 16, "out": 8},
        {"name": "moco", "hidden": 16, "out": 8, "queue": 32, "fill_first": False},
        {"name": "simclr", "hidden": 16, "out": 8},
        {"name": "swav", "hidden": 16, "out": 8, "prototypes": 6, "queue": 4, "queue_epoch": 0.0},
        {"name": "moco_v3", "hidden": 16, "out": 8},
        {"name": "lejepa", "hidden": 16, "out": 8},
    ],
    ids=lambda method: method["name"],
)
def test_a_bad_batch_is_over_with_the_next_step(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    """Its pixels go through batch norms and into queues, and yet no later loss and no checkpoint suffers."""
    real = rhofast.training.trainer._Trainer.next_views

    def next_views(run: Any) -> Any:
        views = real(run)
        if run.step == 1:
            views.pixels[0, 0, 0, 0, 0, 0] = float("nan")
        return views

    monkeypatch.setattr("rhofast.training.trainer._Trainer.next_views", next_views)
    settings = config(shards, tmp_path, checkpoint_steps=1, max_bad_steps=2)
    outcome = train(settings.model_copy(update={"method": parse_config({"name": "x", "method": method}, "x").method}))
    assert [line["loss"] is None for line in metrics(outcome.run)] == [False, True, False, False, False]
    assert [line["step"] for line in metrics(outcome.run, "checkpoint")] == [1, 2, 3, 4, 5]


def test_a_share_of_one_video_is_refused_where_batch_norm_has_no_use_for_it(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.batch_size=1 leaves 1 video per rank.*projector.*at least 2"):
        train(config(shards, tmp_path, batch_size=1))
    with pytest.raises(ConfigError, match=r"train\.batch_size=4 leaves 1 video"):
        train(config(shards, tmp_path, accumulate=4, micro_batch_norm=True))
    assert not (tmp_path / "run").exists()


def test_what_to_look_at_is_a_command_of_the_shell(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, {1}, "loss")
    with pytest.raises(NotFiniteError) as caught:
        train(config(shards, tmp_path / "my runs", max_bad_steps=1))
    assert f"rhofast show '{tmp_path}/my runs/run' --step 1 --rank 0;" in str(caught.value.hint)


def test_a_signal_saves_and_stops(shards: ShardSet, tmp_path: Path) -> None:
    def interrupt(line: dict[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    outcome = train(config(shards, tmp_path), on_log=interrupt)
    assert (outcome.step, outcome.finished) == (2, False)
    assert latest_checkpoint(outcome.run) == tmp_path / "run" / "checkpoints" / "step-00000002"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stop_says_why(shards: ShardSet, tmp_path: Path) -> None:
    outcome = train(config(shards, tmp_path, max_hours=1e-9))
    assert (outcome.step, outcome.finished) == (1, False)
    assert [line["reason"] for line in metrics(outcome.run, "stop")] == ["max_hours"]


def test_killed_runs_end_as_if_nothing_had_happened(shards: ShardSet, tmp_path: Path) -> None:
    """Two processes, hit twice at random moments; benchmarks/training/kill_and_resume.py has more of them."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.training.kill_and_resume",
        "--points",
        "2",
        "--steps",
        "15",
        "--shards",
        str(shards.root),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same bits in all of them" in done.stdout


def test_knn_runs_before_between_and_after(shards: ShardSet, tmp_path: Path) -> None:
    with_test = config(shards, tmp_path, steps=4, knn_steps=2)
    test = SourceConfig(shards=str(shards.root))
    with_test = with_test.model_copy(update={"data": with_test.data.model_copy(update={"test": test})})
    outcome = train(with_test)
    checks = metrics(outcome.run, "knn")
    assert [line["step"] for line in checks] == [0, 2, 4]
    assert all(line["samples"] == 13 and "top5" not in line for line in checks)  # the set has two classes
    (warning,) = (line["text"] for line in metrics(outcome.run, "warning"))
    assert warning.startswith("kNN is not on held-out videos: 13 of 13 test samples")


@pytest.mark.parametrize("step", [2, 4], ids=["between", "after"])
def test_knn_that_was_interrupted_is_done_by_the_resumed_run(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    run = override_config(config(shards, tmp_path, steps=4, knn_steps=2), [f"data.test={held_out.root}"])
    real = rhofast.training.knn_monitor.KnnMonitor.evaluate

    def die(self: Any, at: int, backbone: torch.nn.Module) -> None:
        if at == step:
            raise KeyboardInterrupt
        real(self, at, backbone)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rhofast.training.knn_monitor.KnnMonitor, "evaluate", die)
        train(run)
    for _ in range(2):  # and once
        assert train(run, resume=True).finished
    assert [line["step"] for line in metrics(run.folder, "knn")] == [0, 2, 4]


def test_two_processes_train_on_the_batches_of_one(shards: ShardSet, tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_PAGE)
    losses = []
    for processes in (1, 2):
        sets = [
            f"data.train={shards.root}",
            f"out={tmp_path / str(processes)}",
            "name=run",
            "train.steps=5",
            "train.log_steps=1",
        ]
        command = ["rhofast", "train", str(path), *(text for value in sets for text in ("--set", value))]
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


def _rank(rank: int, port: int, values: dict[str, Any], bad: dict[int, set[int]], result: str) -> None:
    """Train as one of two processes; `bad` holds, by rank, the steps whose loss is not a number there."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update(place, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    torch.set_num_threads(1)
    real = rhofast.training.step.forward_backward

    def forward_backward(model: Any, method: Any, pixels: torch.Tensor, progress: Any, **options: Any) -> Any:
        weight = float("nan") if progress.step + 1 in bad.get(rank, ()) else 1.0
        backward = options.pop("backward")
        loss, logs = real(model, method, pixels, progress, backward=lambda loss: backward(loss * weight), **options)
        return loss * weight, logs

    evaluate = rhofast.training.knn_monitor.evaluate_knn

    def evaluate_knn(backbone: torch.nn.Module, *given: Any) -> Any:
        Path(f"{result}{rank}.statistics").write_text(statistics(backbone.state_dict()))
        return evaluate(backbone, *given)

    rhofast.training.step.forward_backward = forward_backward
    rhofast.training.knn_monitor.evaluate_knn = evaluate_knn
    try:
        end = f"step {train(parse_config(values, where='test'), resume=True).step}"
    except NotFiniteError as error:
        end = str(error)
    Path(f"{result}{rank}").write_text(end)


def statistics(state: dict[str, torch.Tensor]) -> str:
    """Return the running statistics of all batch norms."""
    return "\n".join(f"{key} {value.tolist()}" for key, value in sorted(state.items()) if "running" in key)


def two_processes(folder: Path, run: Config, bad: dict[int, set[int]]) -> list[str]:
    """Return how each of them ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = str(folder / "result")
    torch.multiprocessing.spawn(_rank, args=(port, dump_config(run), bad, result), nprocs=2)
    return [Path(f"{result}{rank}").read_text() for rank in (0, 1)]


def test_two_processes_continue_what_one_began_skip_the_same_steps_and_name_the_rank(
    shards: ShardSet, tmp_path: Path
) -> None:
    """Steps 4 and 5 are fine, 6 and 7 are not on rank 1, but for its gradients no one could tell."""
    options = {"steps": 8, "checkpoint_steps": 3, "max_bad_steps": 2}
    straight = train(config(shards, tmp_path / "straight", **options))
    begun = train(config(shards, tmp_path / "two", **options))
    for step in (6, 8):  # as if it had died after step 3
        shutil.rmtree(begun.run / "checkpoints" / f"step-{step:08d}")
    ends = two_processes(tmp_path, config(shards, tmp_path / "two", **options), {1: {6, 7}})
    assert ends[0] == ends[1] and "step 6 (epoch 1, position 8; loss of rank 1), step 7 (" in ends[0]
    assert f"rhofast show {begun.run} --step 6 --rank 1" in ends[0]
    last = metrics(begun.run, "start")[-1]
    assert (last["step"], last["world_size"]) == (3, 2)
    one, two = ({line["step"]: line["loss"] for line in metrics(run)} for run in (straight.run, begun.run))
    assert [two[4], two[5]] == pytest.approx([one[4], one[5]], abs=2e-3) and two[6] is None


def test_two_processes_evaluate_the_network_that_the_checkpoint_holds(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path
) -> None:
    """Each has its own statistics of batch norm while it trains; features of both are compared with each other."""
    sets = ["method.batch_norm=local", f"data.test={held_out.root}"]
    run = override_config(config(shards, tmp_path, steps=2, knn_steps=2), sets)
    assert two_processes(tmp_path, run, {}) == ["step 2"] * 2
    folder = latest_checkpoint(run.folder)
    assert folder is not None
    prefix = "backbone."
    saved = {key.removeprefix(prefix): v for key, v in load_checkpoint(folder).method.items() if key.startswith(prefix)}
    for rank in (0, 1):
        assert (tmp_path / f"result{rank}.statistics").read_text() == statistics(saved)


def test_networks_are_compiled_on_request(shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    train(config(shards, tmp_path / "without", steps=1))
    assert not compiled
    train(config(shards, tmp_path / "with", steps=1, compile=True))
    assert sorted(compiled) == ["MLP", "MLP", "MLP", "Slow", "Slow"]  # trained and key network, and the predictor
