"""What `import rhofast` promises."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from torch.utils.data import IterableDataset

import rhofast
from tests.helpers.shards import ROOT


@pytest.mark.parametrize("name", rhofast.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert callable(getattr(rhofast, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        rhofast.nope  # noqa: B018


def test_importing_costs_neither_torch_nor_dali() -> None:
    code = "import sys, rhofast; print([name for name in ('torch', 'nvidia.dali', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


NAMES = [
    *("ClipDataset", "EvalLoader", "RhofastError", "TrainLoader", "Views", "clips"),
    *("draw_clips", "eval_clips", "load_backbone", "load_config", "open_shards"),
]
SHAPE = ["num_frames", "frame_stride", "fps", "size", "batch_size"]
FIELDS = ["label", "labels", "key", "extra"]
PLACE = ["rank", "world_size", "device", "dtype", "options"]


def test_the_public_names_are_these() -> None:
    """A name that is added, renamed or removed is a decision: it changes this list, the API reference, CHANGELOG."""
    assert rhofast.__all__ == NAMES
    assert set(NAMES) <= set(dir(rhofast))


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda: rhofast.clips, ["shards", "keep", "num_clips", *SHAPE, "augment", "fields", "seed", *PLACE]),
        (lambda: rhofast.eval_clips, ["shards", "keep", "views", "crops", *SHAPE, "fields", "samples", *PLACE]),
        (lambda: rhofast.ClipDataset, ["shards", "keep", "transform", "fields", "cache"]),
    ],
    ids=["clips", "eval_clips", "ClipDataset"],
)
def test_the_arguments_are_these(function: Callable[[], Callable[..., Any]], names: list[str]) -> None:
    parameters = inspect.signature(function()).parameters
    assert list(parameters) == names
    assert parameters["shards"].default is inspect.Parameter.empty
    assert all(one.kind is one.KEYWORD_ONLY for one in list(parameters.values())[1:])


def test_the_methods_of_what_they_return_are_these() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")} - set(dir(IterableDataset))

    loader = {"close", "device", "started", "stats", "write_error"}
    training = {"load_state_dict", "position", "replay", "samples", "state_dict", "steps_left"}
    assert public(rhofast.TrainLoader) == loader | training
    assert public(rhofast.EvalLoader) == loader
    assert public(rhofast.Views) == {*FIELDS, "clips", "keys", "pixels", "sample", "share", "to"}
    assert {"close", "row"} <= public(rhofast.ClipDataset)


def test_importing_loads_nothing_but_the_standard_library() -> None:
    code = "import sys; before = set(sys.modules); import rhofast; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert loaded - sys.stdlib_module_names == {"rhofast"}
    assert "rhofast.errors" not in run.stdout.split()  # nor any other module of the package


def test_every_public_name_is_in_the_api_reference() -> None:
    text = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    for name, module in rhofast._PUBLIC.items():
        assert f"::: {module}.{name}\n" in text or f"::: {module}\n" in text, name
