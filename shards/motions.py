"""motions: a generated data set of short videos whose class is how an object moves.

    python shards/motions.py FOLDER --split train --videos 1024
    rhofast shard FOLDER OUT --recipe motions --option split=train --option videos=1024

The first command only generates H.264 videos in class folders. The second one generates the same videos where they are
missing, and makes shards of them. SOURCE is the folder for the generated videos.

A textured sprite moves on a dark background. The class is the kind of motion. Everything else (texture, colors, shape,
background, position, size, light, camera drift) is a nuisance that differs from video to video and also drifts within
each video, so that two clips of one video from different times share the motion and little else. All classes look the
same after a horizontal flip. A video is a function of (seed, split, number, difficulty, geometry), to the byte.

The two splits draw from different random streams, and their textures run in different, interleaved directions.

Two options make the videos resemble uncurated ones. With `scenes` > 1, a video shows that many scenes one after
another, each with its own class and look; the label is that of the first. With `balance=zipf`, class frequencies fall
as 1, 1/2, 1/3, ...

License: none is needed, since the videos are generated.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt

from rhofast.data.types import VideoRecord

CLASSES = ("bob", "flicker", "jitter", "orbit", "pulse", "rock", "spin", "sway")
SPLITS = ("train", "test")
BALANCES = ("even", "zipf")
GOLDEN = (5**0.5 - 1) / 2
VERSION = 1  # of the drawing code: increase it when the same settings give other pictures
DIRECTIONS = 4  # directions of a texture's waves; those of test lie halfway between those of train
WANDER_SECONDS = 2.0

Float = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a split.

    Attributes:
        split: Name of the split.
        seed: Seed of all random numbers.
        difficulty: How strongly nuisances vary, in [0, 1].
        size: Pixels per side; even, at least 16.
        frames: Frames per video, divided evenly among its scenes.
        fps: Frames per second.
        scenes: Scenes per video.
        balance: Frequencies of the classes.
    """

    split: Literal["train", "test"] = "train"
    seed: int = 0
    difficulty: float = 0.3
    size: int = 64
    frames: int = 96
    fps: int = 12
    scenes: int = 1
    balance: Literal["even", "zipf"] = "even"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split} must be one of {', '.join(SPLITS)}")
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"difficulty={self.difficulty} must be in [0, 1]")
        if self.size < 16 or self.size % 2:
            raise ValueError(f"size={self.size} (pixels per side) must be even and at least 16")
        if self.frames < 1 or self.fps < 1:
            raise ValueError(f"frames={self.frames} and fps={self.fps} must be at least 1")
        if self.scenes < 1 or self.frames % self.scenes:
            raise ValueError(f"scenes={self.scenes} must be at least 1 and divide frames={self.frames}")
        if self.balance not in BALANCES:
            raise ValueError(f"balance={self.balance} must be one of {', '.join(BALANCES)}")


@dataclass(frozen=True, kw_only=True)
class Motion:
    """The motion of the sprite over time.

    Attributes:
        x: Horizontal position of the center as a share of the canvas, [frames].
        y: Vertical position of the center as a share of the canvas, [frames].
        size: Size as a factor, [frames].
        angle: Angle in radians, [frames].
        brightness: Brightness as a factor, [frames].
    """

    x: Float
    y: Float
    size: Float
    angle: Float
    brightness: Float


def label_of(settings: Settings, number: int, scene: int = 0) -> int:
    """Return the class of a scene; in any run of many videos, classes are as frequent as `balance` says.

    Args:
        settings: Settings of the split.
        number: Number of the video.
        scene: Number of the scene within the video.
    """
    place = number * settings.scenes + scene
    if settings.balance == "even" and settings.scenes == 1:
        return place % len(CLASSES)
    share = np.ones(len(CLASSES)) if settings.balance == "even" else 1 / np.arange(1, len(CLASSES) + 1)
    # Multiples of the golden ratio fill [0, 1) evenly, for any start and order of the classes.
    return int(np.searchsorted(np.cumsum(share / share.sum())[:-1], place * GOLDEN % 1, side="right"))


def video_name(settings: Settings, number: int) -> str:
    """Return the relative path of a video: CLASS/KEY.mp4."""
    return f"{CLASSES[label_of(settings, number)]}/{settings.split}_{number:07d}.mp4"


def generator(settings: Settings, number: int, scene: int = 0) -> np.random.Generator:
    """Return the random generator of one scene; train and test share no random numbers."""
    return np.random.default_rng([settings.seed, SPLITS.index(settings.split), number, *([scene] if scene else [])])


def draw_motion(name: str, rng: np.random.Generator, frames: int, fps: int) -> Motion:
    """Draw the motion of a class.

    Args:
        name: Name of the class.
        rng: The random generator.
        frames: Number of frames.
        fps: Frames per second; periods are in seconds, so another frame rate shows the same motion.

    Raises:
        ValueError: There is no such class.
    """
    time = np.arange(frames) / fps
    still, phase = np.zeros(frames), rng.uniform(0, 2 * np.pi)
    x, y, size, angle, brightness = still, still, np.ones(frames), still, np.ones(frames)

    def wave(shortest: float, longest: float) -> Float:
        return 2 * np.pi * time / rng.uniform(shortest, longest) + phase

    turn = rng.choice([-1.0, 1.0])
    if name == "bob":
        y = 0.2 * np.sin(wave(1.1, 1.6))
    elif name == "flicker":
        brightness = 0.62 + 0.38 * np.sin(wave(0.45, 0.65))
    elif name == "jitter":
        x, y = rng.normal(0, 0.07, (2, frames))
    elif name == "orbit":
        around = turn * wave(1.1, 1.6)
        x, y = 0.2 * np.cos(around), 0.2 * np.sin(around)
    elif name == "pulse":
        size = 1 + 0.45 * np.sin(wave(1.1, 1.6))
    elif name == "rock":
        angle = 0.75 * np.sin(wave(1.1, 1.6))
    elif name == "spin":
        angle = turn * wave(1.1, 1.6)
    elif name == "sway":
        x = 0.2 * np.sin(wave(1.1, 1.6))
    else:
        raise ValueError(f"no class {name!r}")
    return Motion(x=x, y=y, size=size, angle=angle, brightness=brightness)


def wander(rng: np.random.Generator, settings: Settings, low: float, high: float, count: int = 1) -> Float:
    """Return smooth random paths, f32[count, frames], that interpolate uniform draws, one every two seconds.

    Values that are more than two seconds apart are independent.

    Args:
        rng: The random generator.
        settings: Settings of the split.
        low: Smallest value.
        high: Largest value.
        count: Number of paths.
    """
    time = np.arange(settings.frames) / (settings.fps * WANDER_SECONDS) + rng.uniform(0, 1, (count, 1))
    knots = rng.uniform(low, high, (count, int(time.max()) + 2))
    number = time.astype(int)
    share = time - number
    share = share * share * (3 - 2 * share)
    before, after = (np.take_along_axis(knots, number + step, axis=1) for step in (0, 1))
    return np.asarray(before + share * (after - before), dtype=np.float32)


def wave_directions(split: str) -> Float:
    """Return the directions of the plane waves in a split's textures, in radians in [0, pi)."""
    return np.asarray(np.pi * (2 * np.arange(DIRECTIONS) + SPLITS.index(split)) / (2 * DIRECTIONS))


def waves(rng: np.random.Generator, settings: Settings, x: Float, y: Float, finest: float) -> Float:
    """Return a texture in about [-1, 1]: a changing mixture of plane waves that all videos of the split share.

    So no video has a texture of its own.

    Args:
        rng: The random generator.
        settings: Settings of the split.
        x: Horizontal coordinates.
        y: Vertical coordinates.
        finest: Highest frequency, in waves per unit of x or y.
    """
    total = np.float32(0)
    for number, direction in enumerate(wave_directions(settings.split)):
        length = finest * (0.5, 1.0)[number % 2]
        across, down = (np.float32(2 * np.pi * length * part) for part in (np.cos(direction), np.sin(direction)))
        phase = across * x + down * y
        even, odd = wander(rng, settings, -1, 1, 2)
        total = total + even[:, None, None] * np.sin(phase) + odd[:, None, None] * np.cos(phase)
    return np.asarray(total / np.float32(1.5))


def render(settings: Settings, number: int) -> npt.NDArray[np.uint8]:
    """Return all frames of one video: u8[frames, size, size, 3]."""
    part = replace(settings, scenes=1, frames=settings.frames // settings.scenes)
    return np.concatenate(
        [
            render_scene(part, CLASSES[label_of(settings, number, scene)], generator(settings, number, scene))
            for scene in range(settings.scenes)
        ]
    )


def render_scene(settings: Settings, name: str, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return all frames of one scene: u8[frames, size, size, 3].

    Args:
        settings: Settings of one scene: its number of frames, and `scenes` = 1.
        name: Name of the class.
        rng: The random generator of the scene.
    """
    motion = draw_motion(name, rng, settings.frames, settings.fps)
    hard, size = np.float32(settings.difficulty), settings.size
    rows = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    py, px = rows[None, :, None], rows[None, None, :]

    def over_time(values: Float) -> Float:
        return np.asarray(values, dtype=np.float32)[:, None, None]

    def colors(saturation: float, value: float) -> Float:
        """Return one color per frame, f32[frames, 1, 1, 3]."""
        paths = wander(rng, settings, 0, 1, 3)
        paths = paths / paths.max(axis=0)
        return np.asarray(value * (1 - saturation + saturation * paths).T[:, None, None], dtype=np.float32)

    # The background: dark, of low contrast, seen through a drifting camera.
    camera_x, camera_y = wander(rng, settings, -0.1, 0.1, 2)
    texture = waves(rng, settings, px + over_time(camera_x), py + over_time(camera_y), 3.0)[..., None]
    image = colors(0.7, float(0.1 + 0.2 * hard)) * (1 + (0.5 + 0.5 * hard) * texture)

    # The sprite, in its own coordinates: position, size and orientation are undone. Its outline changes over time.
    place_x, place_y = wander(rng, settings, -0.08, 0.08, 2)
    scale = over_time(motion.size * wander(rng, settings, 0.17, 0.22)[0])
    cos, sin = over_time(np.cos(motion.angle)), over_time(np.sin(motion.angle))
    dx, dy = (px - over_time(motion.x + place_x)) / scale, (py - over_time(motion.y + place_y)) / scale
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    radius, around = np.hypot(u, v), np.arctan2(v, u)
    edge = np.float32(1)
    for lobes in (1, 2, 3):
        even, odd = wander(rng, settings, -0.3, 0.3, 2)
        edge = edge + over_time(even) * np.cos(lobes * around) + over_time(odd) * np.sin(lobes * around)
    inside = np.clip((edge - radius) * scale * size + 0.5, 0, 1)[..., None]
    mix = (0.5 + 0.5 * np.clip(waves(rng, settings, u, v, 1.6), -1, 1))[..., None]
    sprite = mix * colors(0.8, 1.0) + (1 - mix) * colors(0.8, 0.5)
    image += inside * (sprite * over_time(motion.brightness)[..., None] - image)

    light = over_time(wander(rng, settings, 1 - 0.6 * float(hard), 1)[0])[..., None]
    noise = rng.standard_normal(image.shape, dtype=np.float32) * (0.01 + 0.03 * hard)
    return np.asarray(np.clip(np.rint(255 * (image * light + noise)), 0, 255), dtype=np.uint8)


def encode(path: Path, frames: npt.NDArray[np.uint8], fps: int) -> None:
    """Write an H.264 video atomically, with the same bytes each time.

    Args:
        path: File to write.
        frames: The pictures, u8[frames, height, width, 3].
        fps: Frames per second.
    """
    aside = path.with_name(f".{path.name}.tmp")
    # Without `cpu-independent` x264's decisions on frame types differ now and then between two runs on one machine.
    options = {"crf": "18", "preset": "veryfast", "x264-params": "cpu-independent=1"}
    with av.open(str(aside), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    aside.replace(path)


def make_video(folder: Path, settings: Settings, number: int) -> None:
    """Render and write one video unless its file exists."""
    path = folder / video_name(settings, number)
    if not path.exists():
        encode(path, render(settings, number), settings.fps)


def make_videos(folder: Path, settings: Settings, videos: int, workers: int | None = None) -> Iterator[int]:
    """Generate the missing videos in FOLDER/SPLIT, in parallel, and yield the number of each video in order.

    Args:
        folder: The folder; videos lie in FOLDER/SPLIT/CLASS.
        settings: Settings of the split.
        videos: Number of videos.
        workers: Number of processes; None: one per core.

    Raises:
        ValueError: The folder holds videos of other settings.
    """
    folder = folder / settings.split
    note, made_from = folder / "motions.json", {"version": VERSION, **asdict(settings)}
    before = {"scenes": 1, "balance": "even"}  # for folders whose motions.json lacks these settings
    if note.exists() and before | json.loads(note.read_text()) != made_from:
        raise ValueError(f"{folder}: holds videos with other settings ({note.name}); choose another folder")
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(made_from))
    if all((folder / video_name(settings, number)).exists() for number in range(videos)):
        yield from range(videos)
        return
    pool = ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn"))
    try:
        done = pool.map(partial(make_video, folder, settings), range(videos), chunksize=4)
        yield from (number for number, _ in enumerate(done))
    finally:  # a caller that stops early does not wait for the rest
        pool.shutdown(cancel_futures=True)


def classes(source: Path, **_: object) -> list[str]:
    """Return the names of all classes, by number."""
    return list(CLASSES)


def records(
    source: Path,
    *,
    split: Literal["train", "test"] = "train",
    videos: int = 1024,
    seed: int = 0,
    difficulty: float = Settings.difficulty,
    size: int = Settings.size,
    frames: int = Settings.frames,
    fps: int = Settings.fps,
    scenes: int = Settings.scenes,
    balance: Literal["even", "zipf"] = Settings.balance,
    workers: int | None = None,
) -> Iterator[VideoRecord]:
    """Generate the missing videos under `source`, and yield all videos.

    With `balance=even` and one scene, video i has class i % 8.

    Args:
        source: Folder for the videos.
        split: Name of the split.
        videos: Number of videos.
        seed: Seed of all random numbers.
        difficulty: How strongly nuisances vary, in [0, 1].
        size: Pixels per side; even, at least 16.
        frames: Frames per video, divided evenly among its scenes.
        fps: Frames per second.
        scenes: Scenes per video.
        balance: Frequencies of the classes.
        workers: Number of processes; None: one per core.

    Raises:
        ValueError: A setting is invalid, or the folder holds videos of other settings.
    """
    settings = Settings(
        split=split,
        seed=seed,
        difficulty=difficulty,
        size=size,
        frames=frames,
        fps=fps,
        scenes=scenes,
        balance=balance,
    )
    for number in make_videos(source, settings, videos, workers):
        label = label_of(settings, number)
        path = source / split / video_name(settings, number)
        yield VideoRecord(key=path.stem, path=path, label=label, label_name=CLASSES[label])


def main() -> None:
    """Generate the videos of one split, as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the videos, which are written to OUT/SPLIT/CLASS")
    parser.add_argument("--videos", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=None, help="number of processes (default: one per core)")
    for name, value in asdict(Settings()).items():
        choices = {"split": SPLITS, "balance": BALANCES}.get(name)
        parser.add_argument(f"--{name}", type=type(value), default=value, choices=choices)
    given = vars(parser.parse_args())
    out, videos, workers = (given.pop(name) for name in ("out", "videos", "workers"))
    from rich.progress import track

    try:
        for _ in track(make_videos(out, Settings(**given), videos, workers), description="motions", total=videos):
            pass
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
