"""Backbones and methods of the user's own code: what is built, and one line for each breach of the contract."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rhofast.errors import ConfigError
from rhofast.models.backbones import build_backbone
from rhofast.models.methods import build_method
from rhofast.models.weight_fit import state_on_meta
from rhofast.storage import user_code

HEAD = """
from __future__ import annotations
import torch
from torch import nn
from rhofast.config.section import Count, Section
from rhofast.models.methods.method import Method

class Options(Section):
    width: Count = 4

class Named(Section):
    name: str = "x"

class Net(nn.Module):
    def __init__(self, options: Options) -> None:
        super().__init__()
        self.layer = nn.Linear(3, options.width)
        self.num_features = options.width

    def forward(self, x):
        return self.layer(x.mean(dim=(2, 3, 4)))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(user_code, "_IMPORTED", {})
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def refused(code: str, *, kind: str = "backbone", function: str = "make", **options: Any) -> str:
    Path("own.py").write_text(HEAD + code)
    with pytest.raises(ConfigError) as caught:
        if kind == "backbone":
            build_backbone(f"own.py:{function}", options, num_frames=2, size=8)
        else:
            build_method(f"own.py:{function}", options, torch.nn.Linear(1, 1))
    return str(caught.value)


@pytest.mark.parametrize("name", ["own_net.py:Net", "./own_net.py:Net", "own_net:Net"])
def test_a_class_or_a_function_is_a_backbone(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "own_net.py").write_text(HEAD)
    monkeypatch.syspath_prepend(str(folder))
    torch.manual_seed(3)
    backbone = build_backbone(name, {"width": 5}, num_frames=2, size=8)
    drawn = torch.rand(())
    assert backbone(torch.zeros(4, 3, 2, 8, 8)).shape == (4, 5)
    torch.manual_seed(3)
    again = build_backbone(name, {"width": 5})  # without the check of clips, which draws nothing
    assert torch.equal(backbone.layer.weight, again.layer.weight) and torch.equal(torch.rand(()), drawn)  # type: ignore[union-attr, arg-type]
    shapes = state_on_meta(lambda: build_backbone(name, {"width": 5}))
    assert {key: value.shape for key, value in shapes.items()} == {
        key: value.shape for key, value in backbone.state_dict().items()
    }
    assert all(value.is_meta for value in shapes.values()) and not backbone.layer.weight.is_meta  # type: ignore[union-attr]


def test_code_that_looks_at_values_is_checked_on_the_cpu(folder: Path) -> None:
    code = """
class Looks(Net):
    def __init__(self) -> None:
        super().__init__(Options(width=int(torch.linspace(0, 4, 2)[1].item())))

    def forward(self, x):
        return super().forward(x) if float(x.sum()) == 0 else None
"""
    (folder / "own_looks.py").write_text(HEAD + code)
    build_backbone("own_looks.py:Looks", {}, num_frames=2, size=8)
    assert state_on_meta(lambda: build_backbone("own_looks.py:Looks", {}))["layer.weight"].shape == (4, 3)


NETWORK = "class make(Net):\n    def forward(self, x):\n        "


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def make(): return 3", "it returns a int, not a torch.nn.Module"),
        ("def make(): return nn.Linear(1, 1)", "num_features is None"),
        ("def make():\n    net = Net(Options())\n    net.num_features = 4.0\n    return net", "num_features is 4.0"),
        ("def make(): raise KeyError('no such part\\nof it')", "KeyError: 'no such part\\nof it' (own.py:22)"),
        ("def make(options): return Net(Options())", "'options' has no option class"),
        ("def make(options: dict): return Net(Options())", "'options' has no option class"),
        ("def make(options: Missing): return Net(Options())", "NameError: name 'Missing' is not defined"),
        ("def make(options: Options, size): return Net(options)", "it takes (options, size), and is called with"),
        ("def make(options: Named): return Net(Options())", "Named.name clashes with backbone.name"),
        (f"{NETWORK}return x", "it returns [2, 3, 2, 8, 8] for clips [2, 3, 2, 8, 8]"),
        (f"{NETWORK}return super().forward(x)[:1]", "it returns [1, 4] for clips"),
        (f"{NETWORK}return super().forward(x).long()", "it returns [2, 4] of torch.int64 for clips"),
        (f"{NETWORK}return (x,)", "it returns a tuple for clips"),
        (f"{NETWORK}return self.layer(x)", "does not take clips [2, 3, 2, 8, 8] (clips.num_frames=2, augment.size=8)"),
        (f"{NETWORK}raise ValueError('needs 16 frames')", "ValueError: needs 16 frames (own.py:24)"),
        (
            "def make():\n    net = Net(Options())\n    net.layer = nn.LazyLinear(4)\n    return net",
            "layers without a shape",
        ),
        ("make = 3", "'make' is not a function in own.py (it defines Options, Named, Net)"),
        ("", "'make' does not exist in own.py"),
        ("import no_such_package", "its import fails: ModuleNotFoundError: No module named 'no_such_package' (own.py"),
        ("raise SystemExit(4)", "its import fails: SystemExit: 4 (own.py:22)"),
        ("def make(:", "its import fails: SyntaxError: "),
    ],
)  # fmt: skip
def test_a_breach_of_a_backbone_is_one_line(code: str, says: str) -> None:
    message = refused(code)
    assert says in message and "\n" not in message and message.startswith("backbone.name=own.py:make")


def test_unknown_options_are_refused_with_the_nearest() -> None:
    assert refused("", function="Net", widht=3) == "backbone: unknown key 'widht' (did you mean 'width'?)"
    assert refused("", function="Net", width=0).startswith("backbone: width=0")


def test_a_function_without_a_parameter_has_no_options() -> None:
    assert "it has no options" in refused("def make(): return Net(Options())", width=3)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.py:make", "nowhere.py: no such file"),
        ("no_such_package.net:make", "there is no module 'no_such_package'"),
        ("json.no_such_module:make", "there is no module 'json.no_such_module'"),
        ("own.py:", "not of the form"),
        (":make", "not of the form"),
        ("own.py:make()", "not of the form"),
        ("https://user:secret@host/own.py:make", "not of the form"),
        ("types.py:make", "another module has the name 'types'"),
        ("my.net.py:make", "has no dot but that of .py"),
        ("sys:exit", "has no source file"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(name: str, says: str, folder: Path) -> None:
    for file in ("types.py", "my.net.py"):
        (folder / file).write_text("def make(): ...")
    with pytest.raises(ConfigError) as caught:
        build_backbone(name, {})
    assert says in str(caught.value) and "secret" not in str(caught.value)


METHOD = "class make(Method):\n    num_passes = lambda self, clips: 1\n    def forward(self, pixels, pass_index): ...\n"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def make(backbone): return backbone", "it returns a Linear, not a rhofast.models.methods.method.Method"),
        ("def make(): ...", "it takes (), and is called with (backbone, options)"),
        ("def make(backbone, options): ...", "'options' has no option class"),
        ("def make(backbone, options: Named): ...", "Named.name clashes with method.name"),
        ("class make(Method):\n    def __init__(self, backbone): ...", "TypeError: Can't instantiate abstract class"),
        (f"{METHOD}    def __init__(self, backbone): super().__init__()", "its attribute backbone is not the backbone"),
    ],
)
def test_a_breach_of_a_method_is_one_line(code: str, says: str) -> None:
    message = refused(code, kind="method")
    assert says in message and "\n" not in message and message.startswith("method.name=own.py:make")
