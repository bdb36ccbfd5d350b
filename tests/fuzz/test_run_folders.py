"""Run folders and exported weights of strangers: whatever is in them, they are read or refused in one line."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from rhofast.analysis.run_history import changes_since, read_run, start_of_step
from rhofast.checkpoint.backbone import backbone_of
from rhofast.checkpoint.backbone_file import load_backbone, save_backbone
from rhofast.checkpoint.checkpoint import Checkpoint, find_damage, load_checkpoint, save_checkpoint
from rhofast.checkpoint.resume import check_resumable
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.load import dump_config
from rhofast.config.schema import ComponentConfig, Config, OptimConfig, TrainConfig
from rhofast.data.types import Position
from rhofast.errors import RhofastError
from rhofast.evaluation.model import open_model
from rhofast.models.backbones import build_backbone
from rhofast.models.backbones.slow import Slow, slow_keys
from rhofast.training.optim import build_optimizer
from rhofast.training.optimizer_state import load_optimizer
from tests.fuzz.mutations import VALUES, choose, mutate, mutate_bytes, mutate_json

Fuzz = Callable[..., None]
OPTIONS = {"width": 2}
CONFIG = Config(
    name="run", train=TrainConfig(steps=9), backbone=ComponentConfig.model_validate({"name": "slow_r18", **OPTIONS})
)
TINY = ["backbone.name=slow_r18", "backbone.width=2"]


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    backbone = build_backbone("slow_r18", OPTIONS)
    return backbone, build_optimizer(backbone, OptimConfig())


def template(folder: Path) -> Path:
    """Write an honest run folder once."""
    if not folder.exists():
        backbone, optimizer = trained()
        saved = Checkpoint(
            step=4,
            config=CONFIG,
            loader={"version": 4, "seed": 0, "digest": "0" * 64, "epoch": 1, "position": 8, "block_shards": None},
            method={f"backbone.{name}": value for name, value in backbone.state_dict().items()},
            optimizer=optimizer.state_dict(),
            scaler={"scale": 65536.0, "growth_interval": 2000, "_growth_tracker": 3},
        )
        save_checkpoint(folder, saved, keep=1)
        (folder / "config.json").write_text(json.dumps(dump_config(CONFIG)))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
        (folder / "bad_samples.jsonl").write_text(json.dumps(BAD) + "\n")
    return folder


LINES: list[dict[str, Any]] = [
    {
        "kind": "start",
        "step": 0,
        "time": "2026-01-01T00:00:00+00:00",
        "world_size": 2,
        "device": "cpu",
        "parameters": 9,
        "samples": 40,
        "digest": "0" * 64,
        "versions": {"torch": "2.11"},
        "decoders": ["host"],
    },
    {"kind": "knn", "step": 0, "top1": 0.5, "top5": 1.0, "samples": 40},
    {"kind": "step", "step": 2, "epoch": 0.5, "loss": None, "clips_per_second": 3.5, "data_wait_share": 0.1},
    {"kind": "warning", "step": 2, "text": "collapse"},
    {"kind": "checkpoint", "step": 2, "seconds": 0.1, "stall_seconds": 0.01},
    {"kind": "step", "step": 4, "epoch": 1.0, "loss": -1.0, "clips_per_second": 3.5, "data_wait_share": 0.1},
    {"kind": "stop", "step": 4, "reason": "SIGTERM"},
]
BAD = {"epoch": 0, "position": 0, "sample": 3, "shard": "a.tar", "key": "k", "offset": 0, "reason": "cut short"}


def read_checkpoint(run: Path) -> None:
    folder = RunFolder(run).checkpoint(4)
    find_damage(folder)
    checkpoint = load_checkpoint(folder, check=False)
    backbone = backbone_of(checkpoint, str(folder))
    network = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    check_resumable(checkpoint, network, 9)
    load_optimizer(build_optimizer(backbone, OptimConfig()), checkpoint.optimizer)


def read_history(run: Path) -> None:
    config, lines = read_run(run, [])
    for step in (1, 4):
        try:
            start_of_step(run, config, lines, step, any_step=False)
        except RhofastError as error:
            assert str(error).count("\n") == 0
    changes_since(run, Position(epoch=0, position=0), {3}, {})


def test_what_is_whole_is_read(honest: Path) -> None:
    assert find_damage(RunFolder(honest).checkpoint(4)) is None
    read_checkpoint(honest)
    read_history(honest)


def spoil_json(rng: np.random.Generator, path: Path) -> None:
    path.write_bytes(mutate_json(rng, json.loads(path.read_text())))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template(tmp_path_factory.mktemp("honest") / "run")


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_the_json_of_a_checkpoint(fuzz: Fuzz, honest: Path, name: str) -> None:
    def make(rng: np.random.Generator, folder: Path) -> Path:
        run = shutil.copytree(honest, folder / "run")
        spoil_json(rng, RunFolder(run).checkpoint(4) / name)
        return run

    fuzz("tests.fuzz.test_run_folders:read_checkpoint", make, cases=60)


@pytest.mark.parametrize("name", ["method.safetensors", "optimizer.safetensors"])
def test_the_tensors_of_a_checkpoint(fuzz: Fuzz, honest: Path, name: str) -> None:
    def make(rng: np.random.Generator, folder: Path) -> Path:
        run = shutil.copytree(honest, folder / "run")
        path = RunFolder(run).checkpoint(4) / name
        path.write_bytes(spoil_safetensors(rng, path.read_bytes()))
        return run

    fuzz("tests.fuzz.test_run_folders:read_checkpoint", make, cases=40)


def test_the_history_of_a_run(fuzz: Fuzz, honest: Path) -> None:
    def make(rng: np.random.Generator, folder: Path) -> Path:
        run = shutil.copytree(honest, folder / "run")
        name = choose(rng, ("config.json", "metrics.jsonl", "metrics.jsonl", "bad_samples.jsonl"))
        if name == "config.json":
            spoil_json(rng, run / name)
        else:
            lines = (run / name).read_bytes().splitlines(keepends=True)
            at = int(rng.integers(len(lines)))
            lines[at] = mutate_json(rng, json.loads(lines[at])) + choose(rng, (b"\n", b""))
            (run / name).write_bytes(b"".join(lines))
        return run

    fuzz("tests.fuzz.test_run_folders:read_history", make, cases=80)


def spoil_safetensors(rng: np.random.Generator, content: bytes) -> bytes:
    """Spoil the header as JSON, its length, or any bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    kind = int(rng.integers(4))
    if kind == 0:
        return mutate_bytes(rng, content)
    if kind == 1:
        header = content[8 : 8 + length]
        wrong = choose(rng, (0, 1, length - 1, length + 8, 2**31, 2**40, 2**63, len(content)))
        return struct.pack("<Q", wrong) + header + content[8 + length :]
    header = mutate_json(rng, json.loads(content[8 : 8 + length]))
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def read_export(path: Path) -> None:
    load_backbone(path)
    open_model(path)


def test_an_exported_backbone(fuzz: Fuzz, tmp_path: Path) -> None:
    backbone, _ = trained()
    inputs = {"text": "clips", "num_frames": 8, "frame_stride": 8, "fps": 30.0, "size": 16}
    card = {
        "origin": "rhofast run x, step 4",
        "input": {**inputs, "mean": [0.45] * 3, "std": [0.225] * 3},
        "num_features": 16,
        "training": {"method": {"name": "byol"}, "seed": 0, "data": {"name": None, "digest": "0" * 64}},
        "metrics": {"knn_top1": 0.5},
    }
    honest = tmp_path / "honest.safetensors"
    save_backbone(backbone, honest, name="slow_r18", options=OPTIONS, card=card)
    read_export(honest)
    content = honest.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])

    def make(rng: np.random.Generator, folder: Path) -> Path:
        path = folder / "export.safetensors"
        if rng.random() < 0.3:
            path.write_bytes(spoil_safetensors(rng, content))
            return path
        notes = mutate_json(rng, json.loads(header["__metadata__"]["rhofast"]))
        if len(notes) > 1 << 20:
            notes = notes[: 1 << 20]
        text = json.dumps({**header, "__metadata__": {"rhofast": notes.decode("utf-8", "replace")}}).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
        return path

    fuzz("tests.fuzz.test_run_folders:read_export", make, cases=100)


def read_foreign(path: Path) -> None:
    open_model(path, overrides=TINY)


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile_pickles() -> list[Any]:
    return [
        Call(bytearray, 3 << 30),
        Call(torch.FloatTensor, 1 << 30),
        Call(torch._utils._rebuild_tensor_v2, torch.zeros(4)._typed_storage(), 0, (1 << 40,), (1,), False, {}),
        Call(torch._utils._rebuild_tensor_v2, torch.zeros(4)._typed_storage(), -9, (4,), (1,), False, {}),
        Call(torch._utils._rebuild_tensor_v2, torch.zeros(4)._typed_storage(), 0, (-4, 7), (1 << 62, 3), False, {}),
        Call(torch._utils._rebuild_tensor_v2, None, 0, (4,), (1,), False, {}),
        Call(print, "pwned"),
        {"model_state": {"s1.pathway0_stem.conv.weight": torch.zeros(2, dtype=torch.complex64)}},
        {"model_state": {"s1.pathway0_stem.conv.weight": torch.tensor(1.0)}},
        {"model_state": {"s1.pathway0_stem.conv.weight": torch.zeros(2, 3, 1, 7, 7).to_sparse()}},
        {"model_state": {}},
        [[]] * 10,
    ]


def test_a_weight_file_of_torch(fuzz: Fuzz, tmp_path: Path) -> None:
    backbone, _ = trained()
    own = backbone.state_dict()
    state = {f"backbone.{official}": own[ours] for official, ours in slow_keys(cast(Slow, backbone)).items()}
    config = (
        "DATA:\n  NUM_FRAMES: 8\n  SAMPLING_RATE: 8\n  TRAIN_CROP_SIZE: 16\n  MEAN:\n  - 0.45\n  - 0.45\n  - 0.45\n"
    )
    content = {"epoch": 3, "model_state": state, "cfg": config}
    files = []
    for legacy in (False, True):
        stream = io.BytesIO()
        torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
        files.append(stream.getvalue())

    for number, honest in enumerate(files):
        (tmp_path / f"{number}.pyth").write_bytes(honest)
        read_foreign(tmp_path / f"{number}.pyth")

    def make(rng: np.random.Generator, folder: Path) -> Path:
        path, kind = folder / "weights.pyth", int(rng.integers(6))
        if kind == 0:
            path.write_bytes(mutate_bytes(rng, choose(rng, files)))
        elif kind == 1:
            values = mutate(rng, {"epoch": 3, "cfg": config, "model_state": {"a": 1}})
            torch.save(values if not isinstance(values, dict) else {**content, **values}, path)
        elif kind == 2:
            with zipfile.ZipFile(io.BytesIO(files[0])) as archive, zipfile.ZipFile(path, "w") as out:
                for entry in archive.infolist():
                    squeezed = zipfile.ZIP_DEFLATED if rng.random() < 0.3 else zipfile.ZIP_STORED
                    body = archive.read(entry)
                    if rng.random() < 0.1:
                        body = mutate_bytes(rng, body) if len(body) < 1 << 20 else body
                    out.writestr(entry.filename, body, squeezed)
        elif kind == 3:
            with zipfile.ZipFile(path, "w", choose(rng, (0, 8))) as out:
                out.writestr("archive/data.pkl", pickle.dumps(choose(rng, hostile_pickles()), protocol=2))
                out.writestr("archive/version", b"3\n")
        elif kind == 4:
            torch.save(choose(rng, hostile_pickles()), path, _use_new_zipfile_serialization=bool(rng.integers(2)))
        else:
            number = choose(rng, [value for value in VALUES if isinstance(value, int | float | str)])
            name = choose(rng, ("NUM_FRAMES", "TRAIN_CROP_SIZE", "SAMPLING_RATE", "TARGET_FPS", "MEAN"))
            torch.save({**content, "cfg": f"DATA:\n  {name}: {number}\n"}, path)
        return path

    fuzz("tests.fuzz.test_run_folders:read_foreign", make, cases=100)
