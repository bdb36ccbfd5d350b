"""The page of key frames: boxes are drawn where they are, in frames of several shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rhofast.analysis.detection_page import draw_detections
from rhofast.config.load import load_config
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError
from rhofast.evaluation.detection import Detected
from tests.helpers.boxes import key_frames
from tests.helpers.shards import encode_mjpeg, write_shards

CONFIG = load_config(None, ["name=x", "clips.num_frames=2", "clips.frame_stride=1", "clips.fps=12", "augment.size=64"])


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    """A wide and a high gray video."""
    videos = [encode_mjpeg([np.full((*size, 3), 90, dtype=np.uint8)] * 4) for size in ((64, 96), (96, 64))]
    return write_shards(tmp_path / "set", videos)


def test_a_page_shows_boxes_scores_and_truth(shards: ShardSet, tmp_path: Path) -> None:
    rows = [
        ("v0", 2, False, (0.5, 0.25, 1.0, 1.0), 1.0, [1, 2]),
        ("v0", 2, True, (0.5, 0.25, 0.95, 1.0), 0.95, []),
        ("v1", 1, False, (0.1, 0.1, 0.2, 0.2), 1.0, [1]),
        ("v1", 1, True, (0.5, 0.5, 0.9, 0.9), 0.95, []),
    ]
    found = key_frames(tmp_path / "boxes.arrow", shards, rows)
    scores = np.array([[0.9, 0.2], [0.1, 0.3]], dtype=np.float32)
    chosen = found.where(found.detected)
    detected = Detected(key_frames=chosen, box=np.arange(2), scores=scores, left_out=[])
    page = tmp_path / "page.png"
    assert draw_detections(page, shards, found, detected, CONFIG, heading=("heading",)) == 2
    with Image.open(page) as picture:
        pixels = np.asarray(picture).astype(int)
    red = np.argwhere((abs(pixels - (230, 80, 60)) < 12).all(axis=2))
    is_gray = (abs(pixels - 90) < 4).all(axis=2)
    # The first frame is drawn at four times its size; its box begins in its middle, a quarter below its top.
    top, left = (int(np.argmax(is_gray.sum(axis=axis) > 150)) for axis in (1, 0))  # text has fewer gray pixels
    first = red[red[:, 1] < left + 4 * 96]
    assert abs(first.min(axis=0) - (top + 64, left + 192)).max() <= 3
    assert draw_detections(tmp_path / "page.gif", shards, found, detected, CONFIG) == 2
    with pytest.raises(ConfigError, match="the suffix must be"):
        draw_detections(tmp_path / "page.jpg", shards, found, detected, CONFIG)
    none = Detected(key_frames=chosen, box=np.zeros(0, dtype=np.int64), scores=scores[:0], left_out=[])
    with pytest.raises(ConfigError, match="no box was scored"):
        draw_detections(page, shards, found, none, CONFIG)
