"""The doors through which a shard set of a stranger comes in, as functions of its folder, for the fuzz tests."""

from __future__ import annotations

import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from rhofast.cli.app import app
from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.codecs import build_codec
from rhofast.data.format.dataset import open_folder
from rhofast.data.format.dataset_json import index_facts, parse_dataset
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.errors import RhofastError
from rhofast.ingest.verify_shard import VerifyJob, check_shard
from rhofast.ingest.writer import tar_members

CLIPS = ClipConfig(num_clips=2, num_frames=3, frame_stride=2, fps=12)
AUGMENT = AugmentConfig(size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def parse(content: bytes) -> None:
    """dataset.json."""
    parse_dataset(content, "dataset.json")


def rows(root: Path) -> None:
    """Everything that an index says, and the units that clips need."""
    shards = open_folder(root)
    codecs = [build_codec(settings) for settings in shards.info.codecs]
    for sample in range(len(shards)):
        row = shards.row(sample)
        codecs[row.codec].units_for(row.units, row.num_frames, np.arange(min(3, row.num_frames), dtype=np.int32))


def inspect(root: Path) -> None:
    app(["inspect", str(root)], standalone_mode=False)


def show(root: Path) -> None:
    """`rhofast show clips`."""
    out = root / "clips.png"
    app(["show", "clips", str(root), "--out", str(out), "--samples", "2"], standalone_mode=False)


def verify(root: Path) -> None:
    """`rhofast verify --deep`, without processes of its own: one that dies is noticed by the harness."""
    shards = open_folder(root, check_files=False)
    for number, shard in enumerate(shards.info.shards):
        job = VerifyJob(
            number=number,
            root=root,
            shard=shard,
            facts=index_facts(shard, shards.info),
            classes=tuple(shards.info.classes),
            deep=True,
            marker=root / "marker",
        )
        check_shard(job)


def train(root: Path) -> None:
    """Two batches as training takes them."""
    data = DataConfig(threads=1, decode_threads=1, timeout_s=9.0)
    shards = open_folder(root)
    with TrainLoader(shards, augment=AUGMENT, data=data, batch_size=2, seed=1, clips=CLIPS) as loader:
        next(loader)
        next(loader)


def commands(root: Path) -> None:
    """All that people do with a set; one that is refused does not spare the others."""
    for command in (inspect, show, verify, train):
        with suppress(RhofastError):
            command(root)


def tar(path: Path) -> None:
    try:
        list(tar_members(path))
    except (OSError, tarfile.TarError):
        return
