"""Charades from its published files to its mAP, on a small replica whose actions are squares that move."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from rhofast.data.sources import open_shards
from rhofast.evaluation.multilabel import classes_of
from tests.helpers.program import run
from tests.helpers.results import read_one
from tests.helpers.shards import ROOT

WIDTH, HEIGHT, RATE, SECONDS, SQUARE = 80, 64, 24, 3.0, 20
TRAIN, TEST = 40, 16
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

Actions = list[tuple[int, float, float]]


def draw_actions(draw: np.random.Generator) -> Actions:
    """Up to three actions of about a second; one that begins late may end after the video does."""
    found: Actions = []
    for number in draw.choice(len(NAMES), size=draw.integers(0, 4), replace=False).tolist():
        start = float(draw.uniform(0, SECONDS - 0.6))
        found.append((number, round(start, 2), round(start + float(draw.uniform(0.7, 1.4)), 2)))
    return found


def write_video(path: Path, actions: Actions, draw: np.random.Generator) -> None:
    """A video with a textured background, on which the box of an action is seen, and moves, as long as it lasts."""
    background = np.kron(draw.integers(40, 200, (8, 10, 1)), np.ones((8, 8, 3))).astype(np.uint8)
    places = draw.integers(0, HEIGHT - SQUARE, (len(actions), 2))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "10"})
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuv420p"
        for number in range(round(SECONDS * RATE)):
            picture, second = background.copy(), number / RATE
            for (label, start, end), place in zip(actions, places, strict=True):
                if start <= second < end:
                    shift = int(20 * (second - start)) * np.array(DIRECTIONS[label])
                    x, y = np.clip(place + shift, 0, (WIDTH - SQUARE, HEIGHT - SQUARE))
                    picture[y : y + SQUARE, x : x + SQUARE] = COLORS[label]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published layout, the shards of both splits, and the config."""
    folder = tmp_path_factory.mktemp("charades")
    (folder / "C/Charades").mkdir(parents=True)
    (folder / "C/Charades_v1_480").mkdir()
    (folder / "C/Charades/Charades_v1_classes.txt").write_text(
        "".join(f"c{number:03d} {name}\n" for number, name in enumerate(NAMES))
    )
    draw = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        with (folder / f"C/Charades/Charades_v1_{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*COLUMNS, "length"])
            for number in range(count):
                key, actions = f"{split[:2].upper()}{number:03d}", draw_actions(draw)
                write_video(folder / f"C/Charades_v1_480/{key}.mp4", actions, draw)
                text = ";".join(f"c{label:03d} {start:.2f} {end:.2f}" for label, start, end in actions)
                writer.writerow([key, "S", "Kitchen", 6, 7, "Yes", "A box, moving.", "box", "It moves.", text, SECONDS])
        options = ["--recipe", "charades", "--option", f"split={split}", "--split", split, "--short-side", "64"]
        assert run("shard", folder / "C", folder / split, *options, "--samples-per-shard", "32") == 0
    (folder / "charades.toml").write_text(PAGE)
    return folder


def test_labels_are_stored_as_published_cut_at_the_end_of_the_video(place: Path) -> None:
    shards = open_shards(place / "train")
    assert shards.info.classes == NAMES
    draw, held = np.random.default_rng(0), []
    for sample in range(TRAIN):
        actions = draw_actions(draw)
        draw.integers(40, 200, (8, 10, 1)), draw.integers(0, HEIGHT - SQUARE, (len(actions), 2))
        row = shards.row(sample)
        assert (row.key, row.label) == (f"TR{sample:03d}", None)
        expected = sorted((start, number, end) for number, start, end in actions)
        assert [(label, start or 0.0) for label, start, _ in row.labels] == [
            (number, start) for start, number, _ in expected
        ]
        ends = [SECONDS if end is None else end for _, _, end in row.labels]
        assert ends == pytest.approx([min(end, SECONDS) for _, _, end in expected])
        held.append({number for number, _, _ in actions})
    assert [set(np.flatnonzero(row).tolist()) for row in classes_of(shards)] == held
    assert any(not one for one in held) and any(len(one) == 3 for one in held)


def test_a_network_of_a_minute_beats_chance_clearly_and_two_processes_give_the_same(place: Path) -> None:
    torch.set_num_threads(1)
    command = ["eval", "multilabel", "random", "--train", str(place / "train"), "--test", str(place / "test")]
    command += ["--config", str(place / "charades.toml")]
    command += ["--set", "backbone.name=slow_r18", "--set", "backbone.width=8", "--set", f"out={place / 'evals'}"]
    assert run(*command) == 0
    one = read_one(place / "evals/charades", "multilabel")
    assert one["trained"]["measures"]["mAP"] > one["chance"] + 0.25
    assert list(one["trained"]["per_class"]) == NAMES
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "rhofast", *command, "--resume"]
    subprocess.run(
        [sys.executable, *launch],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        timeout=300,
    )
    two = read_one(place / "evals/charades", "multilabel")  # trained before, and tested again
    assert (two["trained"], two["chance"], two["settings"]["test_crops"]) == (one["trained"], one["chance"], 3)
