"""Folders of the hub: what is in them, what opens them, and `rhofast export --hub` against a hub without a network."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from safetensors import safe_open

import rhofast
from rhofast.checkpoint.checkpoint import Checkpoint, save_checkpoint
from rhofast.checkpoint.export import import_weights
from rhofast.config.load import parse_config
from rhofast.errors import ConfigError, StoreError
from rhofast.evaluation.model import open_model
from rhofast.models.backbones import build_backbone
from rhofast.models.methods import build_method
from rhofast.storage import user_code
from tests.helpers.program import run as program

CLIP = torch.rand(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SLOW = {"name": "slow_r18", "width": 4}
VIT = {"name": "vit", "width": 24, "depth": 2, "heads": 2, "patch": 8, "position": "sincos1d"}
NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.num_features = 4

    def forward(self, x):
        return self.layer(x.mean(dim=(2, 3, 4)))
"""


def make_run(folder: Path, backbone: dict[str, Any] = SLOW) -> Path:
    """Return the folder of a run of 40 steps that has measured its accuracy."""
    values = {
        "name": "first",
        "backbone": backbone,
        "method": {"name": "byol", "hidden": 8, "out": 4},
        "clips": {"num_frames": 4, "frame_stride": 2, "fps": 12},
        "augment": {"size": 16},
        "data": {"train": "/secret/place"},
        "train": {"steps": 40, "trackers": ["secret.py:Tracker"]},
    }
    config = parse_config(values, where="test")
    network = build_backbone(config.backbone.name, config.backbone.options)
    method = build_method("byol", config.method.options, network)
    code = user_code.imported_digests(backbone=config.backbone.name)
    saved = Checkpoint(
        step=40,
        config=config,
        loader={"epoch": 5, "digest": "abc"},
        method=method.state_dict(),
        optimizer=torch.optim.SGD(method.parameters(), lr=0.1).state_dict(),
        code=code,
    )
    run = folder / "first"
    run.mkdir()
    save_checkpoint(run, saved, keep=1)
    line = {"kind": "knn", "step": 40, "top1": 0.25, "top5": 0.5, "samples": 8}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return run


def features(run: Path) -> torch.Tensor:
    """Return what the run's backbone computes, by way of the export as one file."""
    assert program("export", run, run / "one.safetensors") == 0
    with torch.inference_mode():
        return rhofast.load_backbone(run / "one.safetensors")(CLIP)


class Hub:
    """A hub in a folder, laid out as the cache of `huggingface_hub`, behind the calls of its API that rhofast makes."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.created: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, **_: object) -> "Hub":
        return self

    def place(self, name: str) -> Path:
        return self.cache / f"models--{name.replace('/', '--')}"

    def create_repo(self, name: str, **options: Any) -> None:
        self.created.append((name, options))

    def create_branch(self, name: str, **options: Any) -> None:
        pass

    def list_repo_files(self, name: str, revision: str | None = None) -> list[str]:
        ref = self.place(name) / "refs" / (revision or "main")
        return [path.name for path in (self.place(name) / "snapshots" / COMMIT).iterdir()] if ref.exists() else []

    def upload_folder(self, *, repo_id: str, folder_path: Path, revision: str | None, commit_message: str) -> Any:
        place = self.place(repo_id)
        shutil.copytree(folder_path, place / "snapshots" / COMMIT, dirs_exist_ok=True)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / (revision or "main")).write_text(COMMIT)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/{COMMIT}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub without a network: uploads land in the cache, from which the real client downloads offline."""
    made = Hub(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(made.cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return made


def test_a_run_goes_to_the_hub_and_comes_back(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    assert program("export", run, "--hub", "ada/video", "--private", "--license", "apache-2.0") == 0
    said = capsys.readouterr().out
    assert f"Uploaded: https://huggingface.co/ada/video/commit/{COMMIT}" in said
    assert hub.created == [("ada/video", {"private": True, "exist_ok": True})]
    backbone = rhofast.load_backbone("hf://ada/video")
    with torch.inference_mode():
        assert torch.equal(backbone(CLIP), features(run))
        assert torch.equal(rhofast.load_backbone(f"hf://ada/video@{COMMIT}")(CLIP), backbone(CLIP))
    assert backbone.card["metrics"] == {"knn_top1": 0.25, "knn_top5": 0.5, "knn_samples": 8}
    model = open_model("hf://ada/video")
    assert model.config.name == "ada--video" and model.config.clips.num_frames == 4
    with torch.inference_mode():
        assert torch.equal(model.backbone(CLIP), backbone(CLIP))
    with pytest.raises(StoreError, match="hf://ada/video@v9: the hub cannot be reached, and the cache does not"):
        rhofast.load_backbone("hf://ada/video@v9")

    capsys.readouterr()
    assert program("export", run, "--hub", "ada/video") == 2
    assert "has other files: README.md, config.json, model.safetensors" in capsys.readouterr().err
    assert program("export", run, tmp_path / "kept", "--hub", "ada/video", "--overwrite") == 0
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert program("export", run, "--hub", "ada/video", "--revision", "trial") == 0
    assert rhofast.load_backbone("hf://ada/video@trial").num_features == backbone.num_features


def test_the_card_says_what_the_run_was(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert program("export", run, tmp_path / "video", "--format", "hub") == 0
    text = (tmp_path / "video" / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "rhofast",
        "pipeline_tag": "feature-extraction",
        "tags": ["rhofast", "video", "self-supervised", "byol", "slow_r18"],
    }
    assert "# license: apache-2.0   (fill in" in header and "## License" in body
    assert "| k nearest neighbors | 25.0% | 50.0% | 8 |" in body and "| digest of the data | `abc` |" in body
    assert "2 of 4 frames, 2 apart at 12 frames per second" in body
    code = body.split("```python\n")[1].split("```")[0]
    spoken = {"clips": CLIP}
    exec(code.replace('"video"', repr(str(tmp_path / "video"))), spoken)
    assert torch.equal(spoken["features"], features(run))
    assert len([line for line in code.splitlines() if line]) == 3
    config = json.loads((tmp_path / "video" / "config.json").read_text())
    assert config["rhofast"]["backbone"] == SLOW and config["config"]["train"]["steps"] == 40
    assert "secret" not in text + json.dumps(config)

    line = {"kind": "knn", "step": 40, "top1": 0.25, "samples": 8}  # of a set of few classes
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert program("export", run, tmp_path / "few", "--format", "hub") == 0
    text = (tmp_path / "few" / "README.md").read_text()
    assert "| on held-out videos | top-1 | videos |\n| --- | --- | --- |\n| k nearest neighbors | 25.0% | 8 |" in text

    assert program("export", run, tmp_path / "licensed", "--format", "hub", "--license", "mit") == 0
    text = (tmp_path / "licensed" / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "mit" and "## License" not in text


@pytest.mark.parametrize("options", [{}, {"position": "rope", "rope_pairs": "tiled"}])
def test_a_vit_goes_out_as_transformers_reads_it(options: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path, {**VIT, **options})
    assert program("export", run, tmp_path / "video", "--format", "transformers") == 0
    text = (tmp_path / "video" / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "transformers"
    code = text.split("```python\n")[1].split("```")[0]
    spoken = {"clips": CLIP.transpose(1, 2)}
    with torch.inference_mode():
        exec(code.replace('"video"', repr(str(tmp_path / "video"))), spoken)
    assert torch.allclose(spoken["features"], features(run), atol=1e-5)
    back = import_weights(tmp_path / "video" / "model.safetensors", tmp_path / "back.safetensors")
    assert back.card["input"]["mean"] == [0.45, 0.45, 0.45] and back.card["input"]["std"] == [0.225, 0.225, 0.225]
    with safe_open(tmp_path / "video" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert program("import", tmp_path / "video" / "model.safetensors", tmp_path / "back.safetensors") == 0
    with torch.inference_mode():
        assert torch.allclose(rhofast.load_backbone(tmp_path / "back.safetensors")(CLIP), features(run), atol=1e-5)
    with pytest.raises(ConfigError, match=r"not a backbone exported by rhofast.*rhofast import"):
        rhofast.load_backbone(tmp_path / "video")


def test_other_networks_have_no_such_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    assert program("export", run, tmp_path / "video", "--format", "transformers") == 2
    assert "has no form in transformers" in capsys.readouterr().err and not (tmp_path / "video").exists()


def test_code_of_a_user_is_named_and_not_loaded(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"net_{tmp_path.name}.py"
    (tmp_path / name).write_text(NET)
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path, {"name": f"{name}:Net"})
    assert program("export", run, "--hub", "ada/own") == 2
    assert f"--set backbone.name={name}:Net" in capsys.readouterr().err
    assert program("export", run, "--hub", "ada/own", "--set", f"backbone.name={name}:Net") == 0
    text = (hub.place("ada/own") / "snapshots" / COMMIT / "README.md").read_text()
    digest = user_code.imported_digest(f"{name}:Net")
    assert f"`{name}:Net`, a file with the SHA-256 `{digest}`" in text
    assert 'load_backbone("hf://ada/own", backbone="path/to/file.py:function")' in text
    with pytest.raises(ConfigError, match=r"hf://ada/own: its backbone is code of a user.*pass backbone="):
        rhofast.load_backbone("hf://ada/own")
    assert rhofast.load_backbone("hf://ada/own", backbone=f"{name}:Net").num_features == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "OUT is missing"),
        (["b.safetensors", "--private"], "--private requires --hub"),
        (["b.safetensors", "--license", "mit"], "--license excludes --format safetensors"),
        (["--hub", "video"], "--hub=video: not of the form user/name"),
        (["--hub", "ada/video", "--format", "pyslowfast"], "--hub excludes --format pyslowfast"),
        (["--hub", "ada/video", "--license", "My own: #1"], "not an identifier of a license"),
        (["full", "--format", "hub"], "there is something there already"),
        (["no/folder", "--format", "hub"], "there is no folder"),
    ],
)
def test_what_does_not_go_together_is_said_first(
    arguments: list[str],
    said: str,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert program("export", run, *arguments) == 2
    error = capsys.readouterr().err
    first, *hint = error.splitlines()
    assert said in first and len(hint) <= 1 and hub.created == []
