"""Generated movies in which two persons act, with the csv files that AVA would have of them.

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

from tests.helpers.shards import encode_mjpeg

WIDTH, HEIGHT, FPS, SECONDS, START = 96, 64, 8, 5, 900
CLASSES = (
    'label { name: "stand" label_id: 12 }\nlabel { name: "walk" label_id: 8 }\nlabel { name: "wave" label_id: 17 }\n'
)

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


def movie(number: int) -> bytes:
    """A member of SECONDS seconds."""
    noise, actors = np.random.default_rng(number), actors_of(number)
    return encode_mjpeg([paint(actors, frame, noise) for frame in range(SECONDS * FPS)], fps=FPS)


def shares(box: Box, *, shift: float = 0.0) -> str:
    """The text of a box in a csv file: shares of the frame with three decimals."""
    x1, y1, x2, y2 = box
    sides = (x1 / WIDTH + shift, y1 / HEIGHT, x2 / WIDTH + shift, y2 / HEIGHT)
    return ",".join(f"{min(max(side, 0), 1):.3f}" for side in sides)


def write_csv(folder: Path, movies: range, *, split: str) -> dict[str, Path]:
    """Write ground truth, detections, excluded key frames and the list of classes; movie n of the set has key v{n}.

    Detections are shifted truth with a high score, and a wrong box per key frame with a low one.
    """
    truth, found = list[str](), list[str]()
    for place, number in enumerate(movies):
        for second in range(1, SECONDS):
            frame, when = second * FPS, f"v{place},{START + second:04d}"
            for person, actor in enumerate(actors_of(number)):
                truth += [f"{when},{shares(actor.box(frame))},{action},{person}" for action in actor.actions]
                found.append(f"{when},{shares(actor.box(frame), shift=0.02)},,0.95")
            found.append(f"{when},0.000,0.000,0.300,0.300,,0.2")
    texts = {
        "truth": "\n".join(truth) + "\n",
        "detections": "\n".join(found) + "\n",
        "excluded": f"v0,{START + 1:04d}\n",
        "classes": CLASSES,
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{split}-{name}.{'pbtxt' if name == 'classes' else 'csv'}" for name in texts}
    for name, text in texts.items():
        paths[name].write_text(text)
    return paths
