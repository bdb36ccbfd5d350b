"""`rhofast.draw_clips`: what it draws are the pixels of the batch, with the names of the videos beside them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import rhofast
from rhofast.analysis.draw import draw_clips
from rhofast.analysis.rendering import DrawnClip, DrawnVideo, contact_sheet
from rhofast.data.format.dataset import ShardSet
from rhofast.data.types import Views
from rhofast.errors import ConfigError
from tests.helpers.shards import HEIGHT, WIDTH

SHAPE: dict[str, Any] = {"num_frames": 3, "frame_stride": 2, "fps": 12.0, "size": 32, "batch_size": 4}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pixels_of(picture: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(picture.convert("RGB"))


def test_a_batch_is_drawn_with_its_keys_and_classes(shards: ShardSet) -> None:
    with rhofast.clips(shards, augment="none", device="cpu", **SHAPE) as loader:
        views = next(loader)
        drawn = draw_clips(views, loader, videos=3)
        mean, std = (torch.tensor(value).view(3, 1, 1, 1) for value in (loader.augment.mean, loader.augment.std))
    frames = ((views.pixels * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 1, 3, 4, 5, 2).numpy()
    expected = []
    for clips, sample in zip(frames[:3], views.sample.tolist(), strict=False):
        row = shards.row(sample)
        assert row.label is not None
        expected.append(
            DrawnVideo(
                title=(row.key, shards.info.classes[row.label]),
                clips=tuple(DrawnClip(frames=clip, caption=(f"clip {p + 1}",)) for p, clip in enumerate(clips)),
            )
        )
    assert (pixels_of(drawn) == pixels_of(contact_sheet(expected))).all()


def test_videos_without_labels_and_single_clips_are_drawn(shards: ShardSet) -> None:
    with rhofast.eval_clips(shards, device="cpu", **SHAPE) as loader:
        batch = next(loader)
        assert draw_clips(batch, loader).size[1] > draw_clips(batch, loader, videos=1).size[1]


def test_stored_frames_are_drawn_as_they_are(shards: ShardSet) -> None:
    dataset = rhofast.ClipDataset(shards.root)
    frames = dataset[5, [0, 9]]
    drawn = pixels_of(draw_clips(frames))
    factor = 2  # 64 pixels wide, and drawn at least 112 wide
    large = frames.numpy().repeat(factor, axis=1).repeat(factor, axis=2)
    top, left = 15, 12
    for number, frame in enumerate(large):
        x = left + number * (factor * WIDTH + 2)
        assert (drawn[top : top + factor * HEIGHT, x : x + factor * WIDTH] == frame).all()
    two = draw_clips(torch.stack([frames, dataset[6, [0, 9]]]))
    assert two.size[0] == drawn.shape[1] and two.size[1] > drawn.shape[0]


def test_pixels_that_are_not_square_are_drawn_as_they_are_shown() -> None:
    frames = torch.zeros(1, 48, 64, 3, dtype=torch.uint8)
    square, wide = (pixels_of(draw_clips(frames, pixel_aspect=aspect)) for aspect in (1.0, 1.5))
    dark = [np.argwhere((picture == 0).all(axis=-1)) for picture in (square, wide)]
    across, down = np.transpose([np.ptp(found, axis=0) + 1 for found in dark])[::-1]
    assert (across / down).tolist() == [64 / 48, 96 / 48]
    with pytest.raises(ConfigError, match="pixel_aspect=0 must be a positive number"):
        draw_clips(frames, pixel_aspect=0)


def test_wide_frames_are_made_smaller() -> None:
    frames = torch.full((2, 90, 160, 3), 200, dtype=torch.uint8)
    assert draw_clips(frames).size == draw_clips(torch.full((2, 72, 128, 3), 200, dtype=torch.uint8)).size


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((torch.zeros(2, 4, 4, 3),), r"clips=float32\[2, 4, 4, 3\] must be a batch of a loader, or frames u8"),
        ((torch.zeros(4, 4, 3, dtype=torch.uint8),), r"clips=uint8\[4, 4, 3\] must be"),
        (
            (torch.zeros(0, 4, 4, 3, dtype=torch.uint8),),
            r"nothing to draw in a tensor of shape \[0, 4, 4, 3\]",
        ),
        ((None,), "clips=None must be"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(arguments: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        draw_clips(*arguments)


def test_a_batch_needs_its_loader() -> None:
    one = torch.zeros(1, dtype=torch.int64)
    views = Views(pixels=torch.zeros(1, 1, 3, 2, 4, 4), sample=one, label=one)
    with pytest.raises(ConfigError, match="loader=None must be the loader of the batch"):
        draw_clips(views)
    with pytest.raises(ConfigError, match="videos=0 must be a whole number, at least 1"):
        draw_clips(views, videos=0)
