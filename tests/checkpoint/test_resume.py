"""Where a run continues, what is said about it, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rhofast.checkpoint.checkpoint import Checkpoint, save_checkpoint
from rhofast.checkpoint.resume import open_run
from rhofast.checkpoint.run_lock import claim_run
from rhofast.config.load import override_config, parse_config
from rhofast.config.schema import Config
from rhofast.errors import ConfigError, ResumeError


def config(out: Path, **train: Any) -> Config:
    return parse_config({"name": "run", "out": str(out), "train": {"steps": 9, **train}}, where="test")


def save(run: Config, *steps: int) -> list[Path]:
    folders = []
    for step in steps:
        weight = torch.full((3,), float(step))
        optimizer = {"state": {0: {"momentum_buffer": weight}}, "param_groups": []}
        saved = Checkpoint(step=step, config=run, loader={}, method={"weight": weight}, optimizer=optimizer)
        folders.append(save_checkpoint(run.folder, saved, keep=9))
    return folders


def test_a_new_run_gets_a_folder_with_its_configuration(tmp_path: Path) -> None:
    claim_run(tmp_path / "run", resume=False).release()
    opened = open_run(config(tmp_path), resume=True)
    assert (opened.folder, opened.checkpoint, opened.notes) == (None, None, ())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["steps"] == 9
    with pytest.raises(ConfigError, match="the run folder exists"):
        claim_run(tmp_path / "run", resume=False)


def test_the_newest_whole_checkpoint_is_the_one_and_damaged_ones_get_another_name(tmp_path: Path) -> None:
    run = config(tmp_path)
    _, second, third, fourth = save(run, 1, 2, 3, 4)
    os.truncate(third / "state.json", 10)
    (fourth / "method.safetensors").unlink()
    opened = open_run(run, resume=True)
    assert opened.checkpoint is not None and (opened.folder, opened.checkpoint.step) == (second, 2)
    assert [note.partition(":")[0] for note in opened.notes] == [
        "checkpoint step-00000004 is damaged (method.safetensors is missing)",
        f"checkpoint step-00000003 is damaged (state.json has 10 bytes instead of {_length(second)})",
    ]
    names = {path.name for path in second.parent.iterdir()}
    assert {"damaged-step-00000003", "damaged-step-00000004"} < names
    assert open_run(run, resume=True).notes == ()  # said once


def _length(folder: Path) -> int:
    return (folder / "state.json").stat().st_size


def test_where_all_are_damaged_nothing_is_begun_and_nothing_renamed(tmp_path: Path) -> None:
    run = config(tmp_path)
    (folder,) = save(run, 1)
    (folder / "manifest.json").unlink()
    with pytest.raises(
        ResumeError, match=r"step-00000001: the checkpoint is damaged \(manifest.json is missing\), and so"
    ):
        open_run(run, resume=True)
    assert folder.is_dir()


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(tmp_path)
    (folder,) = save(run, 1)

    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("rhofast.checkpoint.checkpoint._measure", fail)
    with pytest.raises(ResumeError, match="Input/output error"):
        open_run(run, resume=True)
    assert folder.is_dir()


@pytest.mark.parametrize(
    "change",
    ["train.log_steps=3", "train.keep_checkpoints=9", "train.max_hours=2.0", "data.threads=9", "eval.neighbors=5"],
)
def test_settings_without_a_say_in_the_result_may_change(tmp_path: Path, change: str) -> None:
    run = config(tmp_path)
    save(run, 1)
    (note,) = open_run(override_config(run, [change]), resume=True).notes
    assert note.startswith(f"changed: {change.partition('=')[0]} was ")


@pytest.mark.parametrize(
    "change",
    [
        "train.epochs=3",
        "train.batch_size=8",
        "optim.base_lr=0.1",
        "clips.fps=12.0",
        "augment.hue=0.0",
        "method.hidden=9",
    ],
)
def test_settings_with_a_say_in_the_result_must_be_accepted(tmp_path: Path, change: str) -> None:
    run = config(tmp_path)
    save(run, 1)
    changed = override_config(run, [change])
    key = change.partition("=")[0]
    with pytest.raises(ResumeError, match=f"another configuration: .*{key} was") as caught:
        open_run(changed, resume=True)
    assert "--accept-changes" in str(caught.value)
    notes = open_run(changed, resume=True, accept_changes=True).notes
    assert any(note.startswith(f"changed, and accepted: {key} was") for note in notes)


def test_kept_checkpoints_are_saved_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.keep_every=50 must be a multiple of train.checkpoint_steps=20"):
        config(tmp_path, checkpoint_steps=20, keep_every=50)
