"""The command line from videos to a report, and one clear line for what is wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import rhofast
from rhofast.checkpoint.backbone_file import load_backbone
from rhofast.cli.app import app
from rhofast.data.format.dataset import ShardSet
from rhofast.models.backbones import build_backbone
from rhofast.models.weight_formats.pyslowfast import pyslowfast_state
from tests.helpers.program import run
from tests.helpers.results import read_one
from tests.helpers.shards import REAL_VIDEOS, TINY_PAGE, encode_mjpeg, frame_pixels


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("COLUMNS", "200")
    torch.set_num_threads(1)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Six videos in two class folders."""
    for number in range(6):
        folder = tmp_path / "videos" / ("left", "right")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        frames = [frame_pixels(number, frame) for frame in range(12)]
        (folder / f"{number}.mp4").write_bytes(encode_mjpeg(frames))
    return tmp_path / "videos"


def test_the_demo_goes_from_videos_to_a_report(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "tiny.toml"
    page.write_text(TINY_PAGE)
    assert run("demo", "--out", tmp_path / "demo", "--videos", videos, "--config", page) == 0
    said = capsys.readouterr().out
    commands = re.findall(r"^\$ rhofast (\w+)", said, flags=re.MULTILINE)
    assert commands == ["shard", "shard", "train", "eval", "show", "report"]
    steps = re.findall(r"^(\d)\. (\w+) .*:\n\$ rhofast", said, flags=re.MULTILINE)
    assert steps == list(zip("123456", ("Choose", "Choose", "Pretrain", "Classify", "Draw", "Write"), strict=True))
    assert "Training" in said.splitlines()[-2] and "rhofast run pretraining, step" in said
    left = tmp_path / "demo" / "pretraining"
    assert {path.name for path in left.iterdir()} >= {"report.html", "clips.png", "results", "metrics.jsonl"}
    result = read_one(left, "knn")
    assert result["trained"]["samples"] == 2 and result["trained"]["chance"]["top-1"] == 0.5
    with Image.open(left / "clips.png") as sheet:
        assert np.asarray(sheet).std() > 10
    again = ["demo", "--out", tmp_path / "demo", "--videos", videos, "--config", page]
    assert run(*again) == 0  # nothing is redone

    capsys.readouterr()
    assert run("export", left, tmp_path / "b.safetensors") == 0
    assert re.search(r"left behind\s*│ \d+: .*predictor\.\* \(\d+\)", capsys.readouterr().out)
    assert load_backbone(tmp_path / "b.safetensors").card["input"]["size"] == 16
    assert run("export", left, tmp_path / "b.pyth", "--format", "pyslowfast") == 2
    assert "PySlowFast cannot build this network" in capsys.readouterr().err


def test_looking_at_shards(shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", shards.root, "--set", "clips.num_clips=3") == 0
    said = capsys.readouterr().out
    assert "13 in 3 shards" in said and "3 clips x 8 frames" in said and "read amplification" in said
    assert run("show", shards.root, "--out", tmp_path / "x.png", "--key", "v3", "--set", "augment.size=16") == 0
    assert "x.png: 1 sample, " in capsys.readouterr().out
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.width > 100


def test_an_output_that_cannot_be_written_is_exit_code_2(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, said in (
        ("nowhere/x.png", "nowhere/x.png: there is no folder"),
        ("x.bmp", "the suffix must be .png, .gif, .webp or .mp4"),
    ):
        assert run("show", shards.root, "--out", tmp_path / name, "--set", "augment.size=16") == 2
        assert said in capsys.readouterr().err


def test_a_broken_promise_is_exit_code_1(shards: ShardSet, capsys: pytest.CaptureFixture[str]) -> None:
    (shards.root / "shard-000001.tar").unlink()
    assert run("verify", shards.root) == 1
    assert "shard-000001.tar: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "nowhere"], "nowhere: no such folder"),
        (["inspect", "."], "no dataset.json"),
        (["verify", "gopher://host/set"], "shards=gopher://host/set: gopher:// is not supported"),
        (["shard", "nowhere", "out"], "nowhere: no such file or folder"),
        (["shard", "empty", "out"], "no videos"),
        (["shard", "empty", "out", "--recipe", "folder", "--option", "splt=x"], "unknown option 'splt'"),
        (["shard", "empty", "out", "--recipe", "nope"], "recipe 'nope' is not known"),
        (["shard", "empty", "out", "--short-side", "100"], "short_side=100: must be a multiple of 16"),
        (["shard", "empty", "out", "--codec", "mp4"], "codec='mp4' is not known"),
        (["shard", "empty", "out", "--codec", "h264", "--codec", "jpeg"], "--codec is given more than once"),
        (["shard", "empty", "out", "--gop", "8"], "codec jpeg: unknown key 'gop'"),
        (["shard", "empty", "out", "--codec", "copy", "--fps", "5"], "--fps: codec copy keeps every video as it is"),
        (["shard", "empty", "out", "--task", "0/4"], "--task=0/4 is not of the form I/N"),
        (["shard", "empty", "out", "--append"], "out: no such folder"),
        (["shard", "nosuch://bucket/x", "out"], "nosuch://bucket/x"),
        (["recipes", "nope"], "recipe 'nope' is not known"),
        (["train", "none.toml"], "none.toml: no such file"),
        (["train", "page.toml"], "data.train is not set"),
        (["train", "page.toml", "--set", "clips.num_clip=3"], "unknown key 'clips.num_clip'"),
        (["train", "page.toml", "--set", "clips.num_clips=x"], "clips.num_clips='x'"),
        (["train", "page.toml", "--set", "data.train=nowhere"], "nowhere: no such folder"),
        (["eval", "knn", "empty", "empty"], "neither a checkpoint nor a run"),
        (["report", "empty"], "not a run folder"),
        (["show", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.toml").write_text(TINY_PAGE)
    assert run(*arguments) == 2
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if line.strip()]
    assert said in printed and lines[0].startswith("rhofast: error: ")
    assert len(lines) <= 2 and "Traceback" not in printed
    assert not (tmp_path / "out").exists() and not (tmp_path / "runs").exists()


def test_a_launchers_summary_repeats_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    assert run("report", tmp_path) == 2
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    summary = str(ChildFailedError("rhofast", {0: failure}))
    assert "not a run folder" in summary and "Traceback" not in summary
    assert capsys.readouterr().err.splitlines()[0] in summary


def test_parts_and_more_videos_make_one_set(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["shard", videos, tmp_path / "out", "--short-side", "32", "--samples-per-shard", "2", "--workers", "1"]
    assert run(*command, "--task", "2/2") == 0
    assert "without --task" in capsys.readouterr().out
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert run(*command) == 0
    assert "6 samples in 3 shards" in capsys.readouterr().out
    (videos / "left" / "new.mp4").write_bytes((videos / "left" / "0.mp4").read_bytes())
    assert run(*command) == 2
    assert "--append" in capsys.readouterr().err
    assert run(*command, "--append") == 0
    said = capsys.readouterr().out
    assert "7 samples in 4 shards" in said and re.search(r"videos listed\s*│\s*7", said)
    assert run("inspect", tmp_path / "out", "--out", tmp_path / "x.png") == 0
    with Image.open(tmp_path / "x.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_a_dry_run_compares_codecs_and_makes_nothing(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--dry-run", "2", "--codec", "jpeg", "--codec", "h264", "--gop", "4", "--short-side", "32"]
    assert run("shard", videos, tmp_path / "out", *options, "--report", tmp_path / "dry.json") == 0
    said = capsys.readouterr().out
    assert "jpeg" in said and "h264" in said and "PSNR" in said
    assert json.loads((tmp_path / "dry.json").read_text())
    assert not (tmp_path / "out").exists()


def test_a_dry_run_compares_the_fallback_too(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--dry-run", "1", "--codec", "remux", "--fallback", "h264", "--workers", "1"]
    assert run("shard", videos, tmp_path / "out", *options, "--report", tmp_path / "dry.json") == 0
    said = capsys.readouterr().out
    assert re.search(r"remux .*h264", said)
    assert run("shard", videos, tmp_path / "out", "--codec", "jpeg", "--fallback", "h264") == 2
    assert "--codec remux --fallback h264" in capsys.readouterr().err


def test_foreign_weights_come_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = build_backbone("slow_r50", {"width": 4})
    official = {f"backbone.{key}": value for key, value in pyslowfast_state(backbone).items()}
    torch.save({"model_state": {**official, "ptr": torch.zeros(1)}, "epoch": 3}, tmp_path / "official.pyth")
    told = ["import", tmp_path / "official.pyth", tmp_path / "b.safetensors", "--backbone", "slow_r50"]
    assert run(*told, "--set", "backbone.width=4") == 0
    assert re.search(r"left behind\s*│ 1: ptr", capsys.readouterr().out)
    loaded = load_backbone(tmp_path / "b.safetensors").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in backbone.state_dict().items())
    assert run(*told) == 2  # another width
    assert "rhofast: error: " in capsys.readouterr().err


def test_recipes_tell_how_to_use_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes") == 0
    assert {line.partition(":")[0] for line in capsys.readouterr().out.splitlines()} >= {"folder", "kinetics", "ucf101"}
    assert run("recipes", "kinetics") == 0
    assert "--option NAME=VALUE" in capsys.readouterr().out


@pytest.mark.skipif(not REAL_VIDEOS.exists(), reason="no real videos here")
def test_real_videos_go_in_and_are_as_promised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["lowfps_6.mp4", "ucf_style.avi", "kinetics_b.mp4"]
    (tmp_path / "list.csv").write_text("".join(f"{name} {label}\n" for label, name in enumerate(names)))
    options = ["--option", f"root={REAL_VIDEOS}", "--short-side", "64", "--workers", "1"]
    assert run("shard", tmp_path / "list.csv", tmp_path / "out", *options) == 0
    assert "3 samples" in capsys.readouterr().out
    assert run("verify", tmp_path / "out", "--deep") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--trian"], "No such option: --trian"),
        (["shard", "videos"], "Missing argument"),
        (["bench", "speed", "demo"], "'speed' is not one of"),
        (["bench"], "Missing argument 'WHAT'. Choose from: loader, step, both, headspace"),
        (["nope"], "No such command 'nope'"),
        (["shard", "a", "b", "--samples-per-shard", "0"], "'--samples-per-shard': must be at least 1"),
    ],
)
def test_a_command_line_that_cannot_be_parsed_is_one_line_and_a_hint(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("rhofast: error: ") and said in first
    assert second.startswith("  hint: ") and second.endswith("--help")


def test_every_command_has_a_panel_and_examples_or_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    program = capsys.readouterr().out
    for panel in ("Data", "Training", "Evaluation", "Analysis and planning"):
        assert f"─ {panel} ─" in program
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert run(name, "--help") == 0
        assert "Examples" in capsys.readouterr().out, name
    assert run("--version") == 0 and capsys.readouterr().out == f"rhofast {rhofast.__version__}\n"


def test_the_program_begins_without_torch() -> None:
    code = "import sys; from rhofast.cli.app import app; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
