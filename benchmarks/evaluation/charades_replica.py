"""A replica of Charades: generated videos whose actions are squares that move, with csv files as it publishes them.

A square is seen, and moves in its direction, as long as its action lasts; up to three last at a time.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.evaluation.drawn_video import write_video

WIDTH, HEIGHT, RATE, SECONDS, SQUARE = 80, 64, 24, 3.0, 20
NAMES = ["Sliding a red box", "Dropping a green box", "Lifting a blue box", "Pushing a yellow box"]
COLORS = [(220, 30, 30), (30, 200, 40), (40, 60, 230), (220, 210, 40)]
DIRECTIONS = [(1, 0), (0, 1), (0, -1), (-1, 0)]
COLUMNS = ["id", "subject", "scene", "quality", "relevance", "verified", "script", "objects", "descriptions", "actions"]
PAGE = """
name = "charades"
[clips]
num_frames = 4
frame_stride = 4
fps = 24
rule = "stride"
[augment]
size = 32
crop = "short_side"
short_side = [32, 40]
short_side_inverse = true
color = 0.0
gray = 0.0
blur = 0.0
[optim]
name = "adamw"
base_lr = 0.003
base_batch = 16
warmup_epochs = 0
weight_decay = 0.01
[train]
batch_size = 16
steps = 100
log_steps = 50
trackers = []
[eval]
test_views = 10
test_crops = 3
batch_size = 120
batch_norm = "sync"
[data]
threads = 2
decode_threads = 1
"""
"""Config of a classifier that learns these actions within a minute."""

Actions = list[tuple[int, float, float]]


def draw_actions(draw: np.random.Generator) -> Actions:
    """Up to three actions of about a second; one that begins late may end after the video does."""
    found: Actions = []
    for number in draw.choice(len(NAMES), size=draw.integers(0, 4), replace=False).tolist():
        start = float(draw.uniform(0, SECONDS - 0.6))
        found.append((number, round(start, 2), round(start + float(draw.uniform(0.7, 1.4)), 2)))
    return found


def frames_of(actions: Actions, draw: np.random.Generator) -> list[npt.NDArray[np.uint8]]:
    """The frames of a textured background, on which the box of an action is seen, and moves, as long as it lasts."""
    background = np.kron(draw.integers(40, 200, (8, 10, 1)), np.ones((8, 8, 3))).astype(np.uint8)
    places, frames = draw.integers(0, HEIGHT - SQUARE, (len(actions), 2)), []
    for number in range(round(SECONDS * RATE)):
        picture, second = background.copy(), number / RATE
        for (label, start, end), place in zip(actions, places, strict=True):
            if start <= second < end:
                shift = int(20 * (second - start)) * np.array(DIRECTIONS[label])
                x, y = np.clip(place + shift, 0, (WIDTH - SQUARE, HEIGHT - SQUARE))
                picture[y : y + SQUARE, x : x + SQUARE] = COLORS[label]
        frames.append(picture)
    return frames


def write_replica(folder: Path, counts: Mapping[str, int], *, seed: int = 0) -> None:
    """Write videos and csv files in the layout in which Charades is published.

    Args:
        folder: Where to.
        counts: Number of videos of each split, "train" and "test", whose keys begin with TR and TE.
        seed: Seed of what is drawn.
    """
    (folder / "Charades").mkdir(parents=True)
    (folder / "Charades_v1_480").mkdir()
    (folder / "Charades/Charades_v1_classes.txt").write_text(
        "".join(f"c{number:03d} {name}\n" for number, name in enumerate(NAMES))
    )
    draw = np.random.default_rng(seed)
    for split, count in counts.items():
        with (folder / f"Charades/Charades_v1_{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*COLUMNS, "length"])
            for number in range(count):
                key, actions = f"{split[:2].upper()}{number:03d}", draw_actions(draw)
                write_video(folder / f"Charades_v1_480/{key}.mp4", frames_of(actions, draw), rate=RATE)
                text = ";".join(f"c{label:03d} {start:.2f} {end:.2f}" for label, start, end in actions)
                writer.writerow([key, "S", "Kitchen", 6, 7, "Yes", "A box, moving.", "box", "It moves.", text, SECONDS])
