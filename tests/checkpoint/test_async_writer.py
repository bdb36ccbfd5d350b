"""Checkpoints in the background: they hold the state at the call, and no failure there ends training."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import rhofast.checkpoint.async_writer
from rhofast.checkpoint.async_writer import AsyncCheckpointWriter
from rhofast.checkpoint.checkpoint import Checkpoint, load_checkpoint
from rhofast.config.schema import Config, TrainConfig

CONFIG = Config(name="x", train=TrainConfig(steps=9))


def checkpoint(step: int, weight: torch.Tensor) -> Checkpoint:
    state = {"state": {0: {"momentum_buffer": weight * 2}}, "param_groups": [{"lr": 0.1 * step, "params": [0]}]}
    return Checkpoint(step=step, config=CONFIG, loader={"position": step}, method={"weight": weight}, optimizer=state)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that the writer's thread waits for."""
    opened, real = threading.Event(), rhofast.checkpoint.async_writer.write_serialized

    def write(*arguments: Any) -> Path:
        assert opened.wait(10)
        return real(*arguments)

    monkeypatch.setattr("rhofast.checkpoint.async_writer.write_serialized", write)
    return opened


def test_what_is_saved_is_the_moment_of_the_call(tmp_path: Path, gate: threading.Event) -> None:
    weight = torch.arange(24.0).view(2, 3, 1, 2, 2).to(memory_format=torch.channels_last_3d)
    before = weight.clone()
    with AsyncCheckpointWriter(tmp_path, keep=2) as writer:
        writer.save(checkpoint(1, weight))
        weight.zero_()  # the next step
        assert not writer.poll()
        gate.set()
    (saved,) = writer.poll()
    assert (saved.step, saved.error) == (1, None) and 0 < saved.stall_s < 5
    loaded = load_checkpoint(tmp_path / "checkpoints" / "step-00000001")
    assert torch.equal(loaded.method["weight"], before)
    assert torch.equal(loaded.optimizer["state"][0]["momentum_buffer"], 2 * before)
    assert loaded.optimizer["param_groups"] == [{"lr": 0.1, "params": [0]}]


def test_one_at_a_time_and_in_the_same_memory(tmp_path: Path, gate: threading.Event) -> None:
    weight = torch.ones(3)
    with AsyncCheckpointWriter(tmp_path, keep=2) as writer:
        writer.reserve(checkpoint(0, weight))
        writer.save(checkpoint(1, weight))
        threading.Timer(0.2, gate.set).start()
        writer.save(checkpoint(2, weight + 1))  # waits, or the first would become the second
        assert gate.is_set()
        written = writer.poll()  # of the second it is not known whether it is written already
    written += writer.poll()
    assert [(saved.step, saved.error) for saved in written] == [(1, None), (2, None)]
    for step in (1, 2):
        loaded = load_checkpoint(tmp_path / "checkpoints" / f"step-{step:08d}")
        assert torch.equal(loaded.method["weight"], torch.full((3,), float(step)))


@pytest.mark.parametrize(
    ("failure", "reported"),
    [(OSError(28, "No space left on device"), "No space left on device"), (ValueError("odd"), "ValueError: odd")],
)
def test_a_failure_is_reported_and_older_checkpoints_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, reported: str
) -> None:
    with AsyncCheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(checkpoint(1, torch.ones(3)))
        writer.wait()

        def fail(*_: object) -> None:
            raise failure

        monkeypatch.setattr("rhofast.checkpoint.checkpoint.save_file", fail)
        writer.save(checkpoint(2, torch.ones(3)))
    assert [(saved.step, saved.error) for saved in writer.poll()] == [(1, None), (2, reported)]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000001"]
    assert load_checkpoint(tmp_path / "checkpoints" / "step-00000001").step == 1


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    with AsyncCheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(checkpoint(1, torch.tensor([1.0, float("nan")])))
    (saved,) = writer.poll()
    assert saved.error == "method weight has values that are not finite"
    assert not (tmp_path / "checkpoints").exists()
