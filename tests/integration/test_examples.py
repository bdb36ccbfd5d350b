"""docs/examples: the loader in other trainers gives the batches of `rhofast train`, also after a resume in an epoch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

import rhofast
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader import open_loader
from rhofast.training.setup import build_accelerator, build_loader
from tests.helpers.recorded_example import FOLDER, Seen, digest, record
from tests.helpers.shards import ROOT

PATIENCE_S = 300.0
STEPS, STOP = 10, 5  # an epoch is three batches: the run stops and goes on within the second one
# Examples with a loop of their own make as many steps as they are told; trainers count themselves, so they are killed.
LOOPS = ("plain_torch", "accelerate_loop", "stateful_dataloader")
TRAINERS = ("lightning_module", "huggingface_trainer")


@pytest.fixture
def expected(shards: ShardSet, tmp_path: Path) -> list[Seen]:
    """What the loader of `rhofast train` gives with a config of the examples' numbers, over all ranks."""
    numbers = ("clips.num_frames=4", "clips.frame_stride=4", "augment.size=32", "train.batch_size=4")
    config = rhofast.load_config(None, [*numbers, "train.steps=10", f"out={tmp_path}"])
    found = []
    with build_loader(config, build_accelerator(config), shards, None) as loader:
        for _ in range(STEPS):
            views = next(loader)
            found.append(Seen(views.sample.tolist(), [digest(video) for video in views.pixels], ""))
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    """Examples run in a folder of their own; what they open and register is closed and forgotten."""
    opened = []
    kind = open_loader.TrainLoader

    def opening(*given: object, **options: object) -> open_loader.TrainLoader:
        opened.append(kind(*given, **options))  # type: ignore[arg-type]
        return opened[-1]

    monkeypatch.setattr(open_loader, "TrainLoader", opening)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir(tmp_path)
    yield
    for loader in opened:  # of runs that were killed
        loader.close()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    sys.modules.pop("contrast", None)


def batches(steps: list[Seen]) -> list[tuple[list[int], list[str]]]:
    return [(step.samples, step.pixels) for step in steps]


@pytest.mark.filterwarnings(
    "ignore:'set_vital' is deprecated:UserWarning",  # torchdata 0.11 beside torch 2.14
    "ignore:.*treespec, LeafSpec.* is deprecated",  # Lightning 2.6 beside torch 2.14
    "ignore:.*there is no last checkpoint available:UserWarning",  # Lightning, in a first run
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning",  # Lightning, in a second one
)
@pytest.mark.parametrize("name", [*LOOPS, *TRAINERS])
def test_batches_are_those_of_training_and_a_stopped_run_is_the_same_run(
    name: str, shards: ShardSet, expected: list[Seen], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = record(name, shards.root, STEPS)
    (tmp_path / "stopped").mkdir()
    monkeypatch.chdir(tmp_path / "stopped")
    if name in LOOPS:
        begun = record(name, shards.root, STOP)
        rest = record(name, shards.root, STEPS - STOP, seed=1)
    else:
        begun = record(name, shards.root, STEPS, steps=STOP)
        rest = record(name, shards.root, STEPS, seed=1)
    assert batches(whole) == batches(expected)
    assert len(begun) == STOP and begun + rest == whole
    assert len({step.weights for step in whole}) == STEPS


def record_two_ranks(name: str, *arguments: object) -> list[list[Seen]]:
    """Run an example under torchrun in two processes and return what the network of each got."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    helper = ROOT / "tests" / "helpers" / "recorded_example.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*launch, helper, ".", name, *map(str, arguments)], env=environment)
    try:
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.terminate()  # the launcher then ends its workers
        process.wait()
    return [[Seen(**step) for step in json.loads(Path(f"{rank}.json").read_text())] for rank in range(2)]


def test_a_run_of_one_process_goes_on_with_two_of_which_each_gets_its_slice(
    shards: ShardSet, expected: list[Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as alone, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            alone.setenv(name, str(value))
        begun = record("torch_ddp", shards.root, STOP)
    ranks = record_two_ranks("torch_ddp", shards.root, STEPS - STOP)
    joined = [(a.samples + b.samples, a.pixels + b.pixels) for a, b in zip(*ranks, strict=True)]
    assert batches(begun) + joined == batches(expected)
    assert [step.weights for step in ranks[0]] == [step.weights for step in ranks[1]]
    assert len({step.weights for step in begun + ranks[0]}) == STEPS


def test_examples_are_short_and_listed() -> None:
    page = (ROOT / "docs" / "tutorials" / "use_the_loader_elsewhere.md").read_text(encoding="utf-8")
    files = sorted(FOLDER.glob("*.py"))
    assert {file.stem for file in files} == {"contrast", "torch_ddp", *LOOPS, *TRAINERS}
    for file in files:
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 30, file
        assert f"(../examples/{file.name})" in page, file
