"""The checkpoints of a loop: when they are saved, what is reported, and how a run is opened."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rhofast.checkpoint.checkpoint import Checkpoint, load_checkpoint
from rhofast.checkpoint.manager import CheckpointManager
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.load import parse_config
from rhofast.config.schema import Config
from rhofast.errors import ConfigError, ResumeError, SaveError


class Loop:
    """A loop that only counts, with its checkpoints and the lines about them."""

    def __init__(self, out: Path, **train: Any) -> None:
        values = {"name": "run", "out": str(out), "train": {"steps": 5, "checkpoint_steps": 2, **train}}
        self.config: Config = parse_config(values, where="test")
        self.step = 0
        self.lines: list[tuple[str, int]] = []
        self.checkpoints = CheckpointManager(self.config, self.take, self.write_line)

    def take(self) -> Checkpoint:
        weight = torch.full((3,), float(self.step))
        return Checkpoint(
            step=self.step,
            config=self.config,
            loader={"position": self.step},
            method={"weight": weight},
            optimizer={"state": {}, "param_groups": []},
        )

    def write_line(self, kind: str, **values: Any) -> None:
        self.lines.append((kind, values["step"]))

    def run(self, steps: int) -> list[int]:
        """Take steps up to `steps`; return those after which a checkpoint was taken."""
        taken = []
        with self.checkpoints:
            while self.step < steps:
                self.step += 1
                if self.checkpoints.after_step(self.step, 5):
                    taken.append(self.step)
            self.checkpoints.finish(self.step)
        return taken


def test_checkpoints_are_saved_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    assert loop.checkpoints.open(resume=False).checkpoint is None
    assert loop.run(5) == [2, 4]
    assert loop.lines == [("checkpoint", 2), ("checkpoint", 4), ("checkpoint", 5)]
    saved = load_checkpoint(RunFolder(loop.config.folder).checkpoint(4))
    assert (saved.step, saved.method["weight"].tolist()) == (4, [4.0, 4.0, 4.0])


def test_what_is_saved_already_is_not_saved_again(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    with loop.checkpoints:
        loop.checkpoints.open(resume=False)
        loop.step = 2
        assert loop.checkpoints.save(2) and not loop.checkpoints.save(2)
        assert not loop.checkpoints.after_step(2, 5)
        loop.checkpoints.finish(2)
    again = Loop(tmp_path)
    opened = again.checkpoints.open(resume=True)
    assert opened.checkpoint is not None and opened.checkpoint.step == 2
    again.step = 2
    again.checkpoints.finish(2)
    assert again.lines == []


def test_a_run_can_be_checked_before_it_is_continued(tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise ResumeError("another task")

    with pytest.raises(ResumeError, match="another task"):
        Loop(tmp_path).checkpoints.open(resume=True, check=refuse)
    with pytest.raises(ConfigError, match="the run folder exists"):
        Loop(tmp_path).checkpoints.open(resume=False)


def test_a_folder_in_which_another_loop_trains_is_refused_until_that_ends(tmp_path: Path) -> None:
    first, second = Loop(tmp_path), Loop(tmp_path)
    with first.checkpoints:
        first.checkpoints.open(resume=True)
        left = RunFolder(first.config.folder).checkpoints / ".step-00000009.0123456789abcdef.tmp"
        left.mkdir(parents=True)
        with pytest.raises(ResumeError, match=f"process {os.getpid()} on .* training in this folder"):
            second.checkpoints.open(resume=True)
        assert left.is_dir()
    second.checkpoints.open(resume=True)
    assert not left.exists()


def test_all_ranks_fail_if_rank_0_does_not_write_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path)
    for failed in (False, True):
        monkeypatch.setattr("rhofast.checkpoint.manager.gather_objects", lambda mine, failed=failed: [failed, mine])
        with pytest.raises(SaveError, match="of step 3") if failed else contextlib.nullcontext():
            loop.checkpoints.finish(3)


def test_only_the_last_checkpoint_must_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    loop = Loop(tmp_path)
    loop.checkpoints.open(resume=False)
    monkeypatch.setattr("rhofast.checkpoint.checkpoint.save_file", full)
    with pytest.raises(SaveError, match="of step 3, was not written"):
        loop.run(3)
    assert [kind for kind, _ in loop.lines] == ["warning", "warning"]
