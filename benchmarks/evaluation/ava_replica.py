"""A replica of AVA: generated movies in which two persons act, with csv files as AVA publishes them.

Each person is a striped figure with a head, in one half of the frame. What it does is drawn for each movie:

    action 12  stand   dark, bright stripes across   action 8  walk   bright, dark stripes along
    action 17  wave    the head is bright            action 5  jump   up and down; not in the list of what counts

Stripes and heads are seen in one frame; all figures drift slowly, so that boxes move.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.evaluation.drawn_video import write_video

WIDTH, HEIGHT, FPS, SECONDS, START = 96, 64, 8, 5, 900
CLASSES = (
    'label { name: "stand" label_id: 12 }\nlabel { name: "walk" label_id: 8 }\nlabel { name: "wave" label_id: 17 }\n'
)

PAGE = f"""
name = "actors"
[clips]
num_frames = 2
frame_stride = 1
fps = {FPS}
[augment]
size = 48
crop = "short_side"
short_side = [48, 52]
color = 0.0
gray = 0.0
blur = 0.0
[backbone]
name = "slow_r18"
width = 4
last_stride = 1
last_dilation = 2
[data]
threads = 2
[optim]
name = "sgd"
base_lr = 4.0
base_batch = 16
weight_decay = 1e-4
warmup_epochs = 1
[train]
batch_size = 16
steps = 30
trackers = []
[eval]
dropout = 0.2
batch_norm = "local"
batch_size = 8
"""
"""Config of a detector that learns these actions within a minute."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Actor:
    """What one person of a movie does, and where it begins."""

    x: float
    y: float
    drift: float
    walks: bool
    waves: bool
    jumps: bool

    @property
    def actions(self) -> list[int]:
        """Numbers of its actions."""
        return [8 if self.walks else 12, *([17] if self.waves else []), *([5] if self.jumps else [])]

    def box(self, frame: int) -> Box:
        """Its box in pixels at a frame."""
        x = self.x + self.drift * frame
        y = self.y - (4 * (frame % 2) if self.jumps else 0)
        return x, y, x + 24, y + 40


def actors_of(movie: int) -> list[Actor]:
    """The two persons of a movie."""
    rng = np.random.default_rng(100 + movie)
    return [
        Actor(
            x=half * 48 + float(rng.uniform(4, 12)),
            y=float(rng.uniform(8, 18)),
            drift=float(rng.uniform(-0.08, 0.2)),
            walks=bool((movie + half) % 2),
            waves=bool((movie // 2 + half) % 2),
            jumps=bool(rng.random() < 0.5),
        )
        for half in range(2)
    ]


def paint(actors: list[Actor], frame: int, noise: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A frame u8[H, W, 3]."""
    picture = noise.integers(60, 100, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    for actor in actors:
        x1, y1, x2, y2 = (round(side) for side in actor.box(frame))
        body = np.full((y2 - y1, x2 - x1), 220 if actor.walks else 30, dtype=np.uint8)
        if actor.walks:
            body[:, ::6] = body[:, 1::6] = 30
        else:
            body[::6] = body[1::6] = 220
        body[:14] = 250 if actor.waves else 10
        picture[y1:y2, x1:x2] = body[..., None]
    return picture


def frames_of(movie: int) -> list[npt.NDArray[np.uint8]]:
    """All frames of a movie of SECONDS seconds."""
    noise, actors = np.random.default_rng(movie), actors_of(movie)
    return [paint(actors, frame, noise) for frame in range(SECONDS * FPS)]


def shares(box: Box, *, shift: float = 0.0) -> str:
    """The text of a box in a csv file: shares of the frame with three decimals."""
    x1, y1, x2, y2 = box
    sides = (x1 / WIDTH + shift, y1 / HEIGHT, x2 / WIDTH + shift, y2 / HEIGHT)
    return ",".join(f"{min(max(side, 0), 1):.3f}" for side in sides)


def write_csv(folder: Path, movies: range, *, split: str, key: str = "v", start: int = START) -> dict[str, Path]:
    """Write ground truth, detections, excluded key frames and the list of classes.

    Detections are shifted truth with a high score, and a wrong box per key frame with a low one.

    Args:
        folder: Where to.
        movies: Numbers of the movies.
        split: Name of the split, with which the files begin.
        key: What the ids of the movies begin with; a number, counted from 0, follows.
        start: Second of a movie's first frame.

    Returns:
        The files: "truth", "detections", "excluded" and "classes".
    """
    truth, found = list[str](), list[str]()
    for place, number in enumerate(movies):
        for second in range(1, SECONDS):
            frame, when = second * FPS, f"{key}{place},{start + second:04d}"
            for person, actor in enumerate(actors_of(number)):
                truth += [f"{when},{shares(actor.box(frame))},{action},{person}" for action in actor.actions]
                found.append(f"{when},{shares(actor.box(frame), shift=0.02)},,0.95")
            found.append(f"{when},0.000,0.000,0.300,0.300,,0.2")
    texts = {
        "truth": "\n".join(truth) + "\n",
        "detections": "\n".join(found) + "\n",
        "excluded": f"{key}0,{start + 1:04d}\n",
        "classes": CLASSES,
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{split}-{name}.{'pbtxt' if name == 'classes' else 'csv'}" for name in texts}
    for name, text in texts.items():
        paths[name].write_text(text)
    return paths


def write_replica(folder: Path, movies: range, *, split: str) -> dict[str, Path]:
    """Write movies and csv files in the layout in which AVA is published, with seconds from 0; return the csv files."""
    (folder / "trainval").mkdir(parents=True, exist_ok=True)
    for place, number in enumerate(movies):
        write_video(folder / f"trainval/{split}{place}.mp4", frames_of(number), rate=FPS)
    files = write_csv(folder / "annotations", movies, split=split, key=split, start=0)
    truth = folder / f"annotations/ava_{split}_v2.2.csv"
    return {**files, "truth": files["truth"].rename(truth)}
