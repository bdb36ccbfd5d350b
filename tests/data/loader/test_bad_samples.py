"""What goes wrong under way, one fault after another, and the promise each time: training goes on with a stand-in and
every other sample in its place, evaluation leaves out and says so, nothing hangs and no thread is left."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.loader.eval_loader import EvalLoader
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.types import Views
from rhofast.errors import TooManyBadSamplesError
from tests.helpers.shards import ROOT, damage_unit

CLIPS = ClipConfig(num_clips=2, num_frames=3, frame_stride=2, fps=12)
AUGMENT = AugmentConfig(size=16)
SECOND = set(range(5, 10))  # the samples of the second shard


def flipped_byte_in_the_tar(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    for unit in range(len(shards.row(6).units.frame)):
        damage_unit(shards, 6, unit)
    return {6}


def flipped_byte_in_the_index(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    path = shards.root / "shard-000001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    return SECOND


def missing_tar(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    (shards.root / "shard-000001.tar").unlink()
    return SECOND


def missing_index(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    (shards.root / "shard-000001.arrow").unlink()
    return SECOND


def truncated_tar(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    row = shards.row(8)
    os.truncate(shards.root / "shard-000001.tar", row.offset + int(row.units.offset[0]) + 3)
    return {8, 9}


def unreadable_sectors(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The kernel's answer where a disk cannot read a sector."""
    pread, row = os.pread, shards.row(7)
    second = (shards.root / "shard-000001.tar").stat().st_ino

    def failing(descriptor: int, size: int, offset: int) -> bytes:
        bad = range(row.offset, row.offset + row.size)
        if os.fstat(descriptor).st_ino == second and offset < bad.stop and offset + size > bad.start:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    return {7}


FAULTS: list[Callable[[ShardSet, pytest.MonkeyPatch], set[int]]] = [
    flipped_byte_in_the_tar,
    flipped_byte_in_the_index,
    missing_tar,
    missing_index,
    truncated_tar,
    unreadable_sectors,
]


def training(shards: ShardSet, bad_log: Path | None = None, max_bad: float = 1.0) -> TrainLoader:
    data = DataConfig(threads=3, decode_threads=1, max_bad=max_bad)
    return TrainLoader(shards, clips=CLIPS, augment=AUGMENT, data=data, batch_size=4, seed=5, bad_log=bad_log)


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rhofast-")]


@pytest.mark.parametrize("fault", FAULTS)
def test_training_goes_on_and_all_other_samples_stay_where_they_were(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., set[int]]
) -> None:
    with training(shards) as source:
        straight = [next(source) for _ in range(9)]
    fresh = open_folder(shards.root)
    lost, log = fault(shards, monkeypatch), tmp_path / "bad.jsonl"
    with training(fresh, log) as source:
        batches = [next(source) for _ in range(9)]
    for clean, views in zip(straight, batches, strict=True):
        fine = [slot for slot, sample in enumerate(clean.sample.tolist()) if sample not in lost]
        assert torch.equal(views.sample[fine], clean.sample[fine])
        assert torch.equal(views.pixels[fine], clean.pixels[fine])
        assert not lost & set(views.sample.tolist())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["sample"] for line in lines} == lost
    assert all(line["reason"] and line["shard"].startswith("shard-000001") for line in lines)
    assert threads_left() == []


@pytest.mark.parametrize("fault", FAULTS)
def test_evaluation_leaves_out_and_tells(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., set[int]]
) -> None:
    fresh = open_folder(shards.root)
    lost = fault(shards, monkeypatch)
    data = DataConfig(threads=3, decode_threads=1)
    with EvalLoader(fresh, clips=CLIPS, augment=AUGMENT, data=data, batch_size=4, views=2) as source:
        seen = [sample for views in source for sample in views.sample.tolist()]
    assert seen == [sample for sample in range(13) if sample not in lost]
    assert len(source.bad) == len(lost)
    assert threads_left() == []


def test_a_run_whose_shards_are_gone_stops(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in shards.root.glob("*.tar"):
        path.unlink()
    monkeypatch.setattr("rhofast.data.loader.bad_samples.GRACE", 100)
    with training(shards, max_bad=0.05) as source, pytest.raises(TooManyBadSamplesError, match="6 bad samples"):
        next(source)
    assert threads_left() == []


STAGES = {"plan": "_plan", "read": "_read", "pool": "_reads._read_one", "decode": "_decode", "finish": "_finish"}

# os.write: two threads' lines must not run into each other, as print's text and newline may.
INTERRUPTED = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a script
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import tests.data.loader.test_bad_samples as t
from rhofast.data.format.dataset import open_folder
source = t.training(open_folder(Path(sys.argv[2])))
*owner, name = sys.argv[3].split(".")
owner = getattr(source, owner[0]) if owner else source
stage = getattr(owner, name)
def slow(*given):
    os.write(1, b"in it\\n")
    time.sleep(0.7)
    return stage(*given)
setattr(owner, name, slow)
try:
    with source:
        while True:
            next(source)
except KeyboardInterrupt:
    os.write(1, f"left: {t.threads_left()}\\n".encode())
    raise SystemExit(3)
"""


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_in_every_stage_ends_at_once_and_leaves_no_thread(shards: ShardSet, stage: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(ROOT), str(shards.root), STAGES[stage]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "in it\n"
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 3 and out.splitlines()[-1] == "left: []"
    assert time.monotonic() - began < 30


def test_batches_after_a_fault_are_the_same_on_every_rank(shards: ShardSet) -> None:
    for unit in range(len(shards.row(6).units.frame)):
        damage_unit(shards, 6, unit)

    def batches(rank: int, world: int) -> list[Views]:
        data = DataConfig(decode_threads=1, max_bad=1.0)
        options = {"clips": CLIPS, "augment": AUGMENT, "data": data, "batch_size": 4, "seed": 5}
        with TrainLoader(shards, rank=rank, world_size=world, **options) as source:  # type: ignore[arg-type]
            return [next(source) for _ in range(6)]

    for whole, left, right in zip(batches(0, 1), batches(0, 2), batches(1, 2), strict=True):
        assert torch.equal(whole.sample, torch.cat([left.sample, right.sample]))
        assert torch.equal(whole.pixels, torch.cat([left.pixels, right.pixels]))
