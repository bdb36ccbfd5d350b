"""A run with a backbone and a method of the user's own: what is recorded, what resuming and evaluation ask for."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from rhofast.checkpoint.backbone_file import load_backbone
from rhofast.checkpoint.checkpoint import latest_checkpoint, load_checkpoint
from rhofast.config.load import override_config, parse_config
from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError, ResumeError
from rhofast.storage import user_code
from rhofast.training.trainer import train
from tests.helpers.program import run as program

NET = """
from torch import nn
from rhofast.config.section import Count, Section

class Options(Section):
    width: Count = 4

class Net(nn.Module):
    def __init__(self, options: Options) -> None:
        super().__init__()
        self.layer = nn.Linear(3, options.width)
        self.num_features = options.width

    def forward(self, x):
        return self.layer(x.mean(dim=(2, 3, 4)))
"""

METHOD = """
import torch
from torch import nn
from rhofast.models.methods.method import Method

class Whiten(Method):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.scale = nn.Parameter(torch.ones(()))

    def num_passes(self, num_clips):
        return 1

    def forward(self, pixels, pass_index):
        first, second = (self.scale * self.backbone(clip) for clip in pixels.unbind(dim=1))
        loss = (first - second).square().mean() - first.std()
        return loss, {"spread": first.detach().std()}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("COLUMNS", "400")
    torch.set_num_threads(1)
    (tmp_path / "own_net.py").write_text(NET)
    (tmp_path / "own_method.py").write_text(METHOD)
    forget(tmp_path)
    yield tmp_path
    forget(tmp_path)


def forget(folder: Path) -> None:
    """Forget what was imported, as a new process does."""
    user_code._IMPORTED.clear()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def config(shards: ShardSet, **sections: Any) -> Config:
    values = {
        "name": "run",
        "data": {"train": str(shards.root), "threads": 2, "decode_threads": 1},
        "clips": {"num_frames": 2, "frame_stride": 2, "fps": 12},
        "augment": {"size": 16},
        "backbone": {"name": "own_net.py:Net", "width": 6},
        "method": {"name": "own_method.py:Whiten"},
        "train": {"batch_size": 4, "steps": 2, "log_steps": 1},
        "eval": {"views": 1},
        **sections,
    }
    return parse_config(values, where="test")


def test_a_run_with_own_code_is_recorded_resumed_and_evaluated(
    shards: ShardSet, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = config(shards)
    run = train(own).run
    checkpoint = load_checkpoint(latest_checkpoint(run) or Path())
    assert {kind: len(digest) for kind, digest in checkpoint.code.items()} == {"backbone": 64, "method": 64}
    longer = override_config(own, ["train.steps=3"])

    (folder / "own_method.py").write_text(METHOD + "# changed\n")
    forget(folder)
    with pytest.raises(ResumeError, match=r"the file of method\.name=own_method\.py:Whiten had SHA-256"):
        train(longer, resume=True, accept_changes=False)
    assert train(longer, resume=True, accept_changes=True).step == 3

    forget(folder)
    (folder / "own_method.py").unlink()  # evaluation and export need the backbone alone
    (folder / "moved").mkdir()
    moved = (folder / "own_net.py").rename(folder / "moved" / "own_net.py")
    (folder / "own_net.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    capsys.readouterr()
    knn = ("eval", "knn", run, "--train", shards.root, "--test", shards.root, "--allow-overlap", "--out", "knn.json")
    for command in (knn, ("export", run, "net.safetensors")):
        assert program(*command) == 2
        said = capsys.readouterr().err
        assert "own_net.py:Net, which is imported only if you name it" in said
        assert "--set backbone.name=own_net.py:Net" in said
    assert not (folder / "imported").exists() and not (folder / "net.safetensors").exists()
    named = ("--set", f"backbone.name={moved}:Net")
    assert program(*knn, *named) == 0
    assert program("export", run, "net.safetensors", *named) == 0

    with safe_open("net.safetensors", "pt") as file:  # type: ignore[no-untyped-call]
        notes = json.loads(file.metadata()["rhofast"])
    assert notes["code"] == checkpoint.code["backbone"] and notes["backbone"]["width"] == 6
    assert notes["card"]["training"]["code"].keys() == {"backbone", "method"}
    forget(folder)
    with pytest.raises(ConfigError, match=r"pass backbone='.*own_net\.py:Net' to load_backbone"):
        load_backbone("net.safetensors")
    assert not user_code._IMPORTED
    trained = load_backbone("net.safetensors", backbone=f"{moved}:Net")
    saved = load_checkpoint(latest_checkpoint(run) or Path()).method["backbone.layer.weight"]
    assert torch.equal(trained.layer.weight, saved)  # type: ignore[union-attr, arg-type]

    moved.write_text(NET + "# changed\n")
    forget(folder)
    with pytest.warns(UserWarning, match="is another file than the weights were saved with"):
        load_backbone("net.safetensors", backbone=f"{moved}:Net")


def test_the_code_of_a_checkpoint_is_compared_with_what_is_named(
    shards: ShardSet, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(config(shards)).run
    other = folder / "other_net.py"
    other.write_text(NET.replace("nn.Linear(3, options.width)", "nn.Linear(3, options.width, bias=False)"))
    with pytest.warns(UserWarning, match="other_net.py:Net is another file"):
        assert program("export", run, "net.safetensors", "--set", "backbone.name=other_net.py:Net") == 2
    assert "do not fit backbone.name=other_net.py:Net: layer.bias is not known" in capsys.readouterr().err
    for other_setting in ("backbone.name=slow_r18", "train.steps=3"):
        assert program("export", run, "net.safetensors", "--set", other_setting) == 2
    assert not (folder / "net.safetensors").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("return loss, {", "return loss #", "its forward returns a Tensor, not (loss, metrics)"),
        ("return loss, {", "return loss[None], {", "its loss is a tensor [1], not a scalar tensor with a gradient"),
        ("return loss, {", "return loss.item(), {", "its loss is a float, not a scalar tensor with a gradient"),
        ("return loss, {", "return loss.detach(), {", "its loss is a tensor [], not a scalar tensor with a gradient"),
        (".detach().std()", ".std()", "its metric 'spread' is not a detached scalar tensor"),
        ("self.scale * ", "", "the loss has no gradient for scale (1 parameters in all)"),
        ("return 1", "return 1.0", "num_passes(2) returns 1.0"),
        ("return 1", "raise ValueError('needs 5 clips')", "needs 5 clips"),
        ("loss =", "loss = missing +", "NameError: name 'missing' is not defined (own_method.py:"),
    ],
)
def test_a_method_that_breaks_the_contract_starts_no_run(
    old: str, new: str, says: str, shards: ShardSet, folder: Path
) -> None:
    assert old in METHOD
    (folder / "own_method.py").write_text(METHOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        train(config(shards))
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert latest_checkpoint(folder / "runs" / "run") is None


def test_clips_that_a_backbone_does_not_take_start_no_run(shards: ShardSet, folder: Path) -> None:
    (folder / "own_net.py").write_text(
        NET.replace("x.mean(dim=(2, 3, 4))", "x.unflatten(2, (4, 4)).mean((2, 3, 4, 5))")
    )
    with pytest.raises(ConfigError, match=r"does not take clips \[2, 3, 2, 16, 16\] \(clips.num_frames=2"):
        train(config(shards))
