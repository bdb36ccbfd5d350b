"""Checkpoints are whole or not there."""

import contextlib
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import rhofast.checkpoint.checkpoint
from rhofast.checkpoint.checkpoint import (
    Checkpoint,
    find_checkpoint,
    find_damage,
    latest_checkpoint,
    load_checkpoint,
    remove_unfinished,
    save_checkpoint,
)
from rhofast.config.schema import Config, TrainConfig
from rhofast.errors import ResumeError


def checkpoint(step: int) -> Checkpoint:
    torch.manual_seed(step)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return Checkpoint(
        step=step,
        config=Config(name="x", train=TrainConfig(steps=9)),
        loader={"epoch": 1, "position": step},
        method=dict(model.state_dict()),
        optimizer=optimizer.state_dict(),
    )


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved = checkpoint(7)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved, keep=3))
    assert (loaded.step, loaded.loader, loaded.config) == (7, {"epoch": 1, "position": 7}, saved.config)
    assert all(torch.equal(value, loaded.method[key]) for key, value in saved.method.items())
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    optimizer.load_state_dict(loaded.optimizer)
    for number, slots in optimizer.state_dict()["state"].items():
        assert all(torch.equal(slots[name], saved.optimizer["state"][number][name]) for name in slots)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)
    folders = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert folders == ["step-00000003", "step-00000004"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000004"


def test_every_so_many_steps_one_is_kept_for_good(tmp_path: Path) -> None:
    for step in range(1, 9):
        save_checkpoint(tmp_path, checkpoint(step), keep=2, keep_every=3)
    folders = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert folders == [f"step-0000000{step}" for step in (3, 6, 7, 8)]


def test_a_run_that_went_back_keeps_what_it_writes(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, checkpoint(step), keep=5)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000001")
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000001"
    folder = save_checkpoint(tmp_path, checkpoint(2), keep=1)
    assert latest_checkpoint(tmp_path) == folder and load_checkpoint(folder).step == 2


def test_one_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2):
        folder = save_checkpoint(tmp_path, checkpoint(step), keep=5)
    before = tmp_path / "checkpoints" / "step-00000001"
    os.truncate(folder / "optimizer.safetensors", 100)
    assert (find_damage(folder) or "").startswith("optimizer.safetensors has 100 bytes instead of")
    assert latest_checkpoint(tmp_path) == before
    (folder / "state.json").unlink()
    assert latest_checkpoint(tmp_path) == before
    (folder / "manifest.json").write_text("{")
    assert (find_damage(folder) or "").startswith("manifest.json is damaged: not JSON at ")


def test_a_pointer_that_points_nowhere_is_no_obstacle(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, checkpoint(1), keep=5)
    for content in (b"\x99\xff\0", b"", b"step-00000007"):
        (tmp_path / "checkpoints" / "latest").write_bytes(content)
        assert latest_checkpoint(tmp_path) == folder


def test_who_may_read_one_file_may_read_all(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, checkpoint(1), keep=5)
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, checkpoint(1), keep=5)
    assert find_damage(folder) is None
    for name in ("method.safetensors", "optimizer.safetensors", "state.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        assert find_damage(folder) == f"{name} is damaged" and find_damage(folder, deep=False) is None
        (folder / name).write_bytes(whole)


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, checkpoint(2), keep=5)
    (folder.parent / ".step-00000003.0123456789abcdef.tmp").mkdir()
    remove_unfinished(tmp_path)
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, "latest"}


def test_two_writers_of_one_checkpoint_never_mix_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, real, values = threading.Barrier(2), rhofast.checkpoint.checkpoint.save_file, (1.0, 2.0)

    def save_file(*arguments: object) -> None:
        real(*arguments)
        both.wait(timeout=30)  # after each file of the one, the same file of the other is there

    def write(value: float) -> None:
        saved = replace(checkpoint(5), method={"weight": torch.full((3,), value)}, loader={"value": value})
        with contextlib.suppress(OSError):  # the second of two renames finds the folder there
            save_checkpoint(tmp_path, saved, keep=5)

    monkeypatch.setattr("rhofast.checkpoint.checkpoint.save_file", save_file)
    threads = [threading.Thread(target=write, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loaded = load_checkpoint(find_checkpoint(tmp_path))
    assert loaded.method["weight"].tolist() == [loaded.loader["value"]] * 3


def test_a_failed_save_leaves_the_older_ones_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=5)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rhofast.checkpoint.checkpoint.flush", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, checkpoint(2), keep=5)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000001"]
    assert load_checkpoint(find_checkpoint(tmp_path)).step == 1


def test_a_damaged_one_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, checkpoint(1), keep=5)
    (folder / "method.safetensors").write_bytes(b"\x08")
    with pytest.raises(ResumeError, match="not a whole checkpoint"):
        load_checkpoint(folder)
    state = json.loads((folder / "state.json").read_text())
    save_checkpoint(tmp_path, checkpoint(1), keep=5)
    (folder / "state.json").write_text(json.dumps({**state, "version": 99}))
    with pytest.raises(ResumeError, match="version 99"):
        load_checkpoint(folder, check=False)


def test_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="neither a checkpoint nor a run"):
        find_checkpoint(tmp_path)
