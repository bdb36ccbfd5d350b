"""Draw key frames with the boxes of persons, the actions that they were given, and the true ones.

1, 2, ...  boxes that were scored, each in a color of its own      below: the best actions with their scores
dashes     boxes of annotators                                     below: "true: ..." of the box that is met best
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from rhofast.analysis.rendering import DrawnClip, DrawnVideo, animation, check_suffix, write_pictures
from rhofast.analysis.replay import displayable
from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.key_frames import KeyFrames
from rhofast.data.loader.box_loaders import BoxEvalLoader
from rhofast.errors import ConfigError
from rhofast.evaluation.detection import Detected
from rhofast.evaluation.frame_ap import IOU, overlaps
from rhofast.evaluation.multiview import test_augment
from rhofast.storage.files import check_writable, replacing

_COLORS = ((230, 80, 60), (60, 140, 230), (70, 180, 90), (220, 160, 40), (160, 90, 200), (60, 180, 190))
_TRUTH = (250, 250, 250)
_BOXES = 6  # boxes whose actions are listed below a frame
_ACTIONS = 3  # of each box
_LEAST_WIDTH = 320  # pixels; smaller frames are enlarged before boxes are drawn on them
_DASH = 6


def draw_detections(
    target: Path,
    shards: ShardSet,
    found: KeyFrames,
    detected: Detected,
    config: Config,
    *,
    count: int = 12,
    heading: Sequence[str] = (),
) -> int:
    """Draw some of the key frames that were tested, evenly spread over the set. Call it in one process.

    Args:
        target: The file. A .png shows the key frames; .gif, .webp and .mp4 play the clips around them.
        shards: The test shards.
        found: All boxes of the test set, with the ground truth.
        detected: The scores.
        config: Sections `clips`, `augment`, `data` and `eval`.
        count: Number of key frames.
        heading: Phrases at the top.

    Returns:
        The number of key frames that were drawn.

    Raises:
        ConfigError: The suffix is not supported, or nothing was scored.
        ShardError: The shards cannot be read.
        OSError: The file cannot be written.
    """
    check_suffix(target)
    check_writable(target)
    frames = detected.key_frames
    places = np.unique(frames.place_of_box()[detected.box])
    if not len(places):
        raise ConfigError(f"{target}: no box was scored, so there is nothing to draw", hint="check the shards")
    chosen = places[np.unique(np.linspace(0, len(places) - 1, count).astype(int))]
    wanted = np.zeros(len(frames.boxes), dtype=np.bool_)
    wanted[frames.boxes_of(chosen)[1]] = True
    augment = test_augment(config)
    with BoxEvalLoader(
        shards, frames.where(wanted), clips=config.clips, augment=augment, data=config.data, batch_size=1
    ) as loader:
        clips = {int(chosen[views.sample.item()]): displayable(views.pixels, augment)[0, 0] for views in loader}
    if not clips:
        raise ConfigError(f"{target}: none of {len(chosen)} key frames can be read", hint="check: rhofast verify")
    factor = max(1, -(-_LEAST_WIDTH // max(clip.shape[2] for clip in clips.values())))
    shape = tuple(factor * max(clip.shape[axis] for clip in clips.values()) for axis in (1, 2))
    videos = [_drawn(place, clips[place], factor, shape, shards, found, detected) for place in sorted(clips)]
    if target.suffix.lower() == ".png":
        with replacing(target, suffix=".png") as aside:
            animation(videos, heading=heading)[config.clips.num_frames // 2].save(aside)
    else:
        write_pictures(target, videos, heading=heading, fps=config.clips.fps / config.clips.frame_stride)
    return len(videos)


def _drawn(
    place: int,
    clip: npt.NDArray[np.uint8],
    factor: int,
    shape: tuple[int, ...],
    shards: ShardSet,
    found: KeyFrames,
    detected: Detected,
) -> DrawnVideo:
    """Draw a key frame.

    Args:
        place: Number of the key frame among those that were tested.
        clip: Frames around it, u8[T, H, W, 3].
        factor: How many times as large it is drawn.
        shape: Height and width of the picture; what the frame leaves is white.
        shards: The test shards.
        found: All boxes.
        detected: The scores.
    """
    frames = detected.key_frames
    sample, frame, second = (int(of[place]) for of in (frames.sample, frames.frame, frames.second))
    rows = np.flatnonzero(np.isin(detected.box, frames.boxes_of(np.array([place]))[1]))
    boxes = frames.boxes[detected.box[rows]]
    here = np.flatnonzero((found.sample == sample) & (found.frame == frame))
    true = found.boxes_of(here)[1]
    true = true[~found.detected[true]]
    share = overlaps(boxes, found.boxes[true])
    lines = []
    for number, row in enumerate(rows[:_BOXES].tolist()):
        best = int(share[number].argmax()) if len(true) else -1
        meets = best >= 0 and share[number, best] >= IOU
        lines.append(_line(number, detected.scores[row], found, int(true[best]) if meets else None))
    if len(rows) > _BOXES:
        lines.append(f"and {len(rows) - _BOXES} more boxes")
    pictures = [_with_boxes(picture, factor, shape, boxes, found.boxes[true]) for picture in clip]
    title = (f"{shards.row(sample).key}, second {second}",)
    return DrawnVideo(title=title, clips=(DrawnClip(frames=np.stack(pictures), caption=tuple(lines)),))


def _line(number: int, scores: npt.NDArray[np.float32], found: KeyFrames, true: int | None) -> str:
    """Return the line of a box: its best actions, and those of the true box that it meets."""
    names = list(found.classes.values())
    best = np.argsort(-scores, kind="stable")[:_ACTIONS]
    said = ", ".join(f"{names[c]} {scores[c]:.2f}" for c in best.tolist())
    if true is None:
        return f"{number + 1}: {said}; no true box there"
    shown = found.actions[found.action_begins[true] : found.action_begins[true + 1]].tolist()
    counted = [found.classes[action] for action in dict.fromkeys(shown) if action in found.classes]
    return f"{number + 1}: {said}; true: {', '.join(counted) or 'none that counts'}"


def _with_boxes(
    picture: npt.NDArray[np.uint8],
    factor: int,
    shape: tuple[int, ...],
    boxes: npt.NDArray[np.float64],
    true: npt.NDArray[np.float64],
) -> npt.NDArray[np.uint8]:
    """Return an enlarged picture with boxes on it, in the upper left of a white one of a given height and width."""
    height, width = (factor * side for side in picture.shape[:2])
    image = Image.new("RGB", (shape[1], shape[0]), (255, 255, 255))
    image.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR), (0, 0))
    draw = ImageDraw.Draw(image)
    scale = np.array([width, height, width, height])
    for x1, y1, x2, y2 in true * scale:
        for along in np.arange(x1, x2, 2 * _DASH):
            draw.line([(along, y1), (min(along + _DASH, x2), y1)], fill=_TRUTH, width=2)
            draw.line([(along, y2), (min(along + _DASH, x2), y2)], fill=_TRUTH, width=2)
        for along in np.arange(y1, y2, 2 * _DASH):
            draw.line([(x1, along), (x1, min(along + _DASH, y2))], fill=_TRUTH, width=2)
            draw.line([(x2, along), (x2, min(along + _DASH, y2))], fill=_TRUTH, width=2)
    for number, (x1, y1, x2, y2) in enumerate(boxes * scale):
        color = _COLORS[number % len(_COLORS)]
        draw.rectangle([x1, y1, max(x1, x2), max(y1, y2)], outline=color, width=2)
        draw.rectangle([x1, y1, x1 + 10 + 7 * (number > 8), y1 + 14], fill=color)
        draw.text((x1 + 3, y1 + 1), str(number + 1), fill=(255, 255, 255))
    return np.asarray(image)
