"""What tests that train classifiers share: one thread in a folder of their own, and a held-out set."""

from pathlib import Path

import pytest
import torch

from rhofast.data.format.dataset import ShardSet
from tests.helpers.shards import encode_mjpeg, frame_pixels, write_shards


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def held_out(tmp_path: Path) -> ShardSet:
    """Return six other videos of the same three classes."""
    members = [encode_mjpeg([frame_pixels(video, 23 - frame) for frame in range(20)]) for video in range(6)]
    return write_shards(tmp_path / "held_out", members, labels=[video % 3 for video in range(6)])
