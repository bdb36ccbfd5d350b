"""Charades from its published files to its mAP, on a small replica whose actions are squares that move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.evaluation.charades_replica import HEIGHT, NAMES, PAGE, SECONDS, SQUARE, draw_actions, write_replica
from rhofast.data.sources import open_shards
from rhofast.evaluation.multilabel import classes_of
from tests.helpers.program import run, run_ranks
from tests.helpers.results import read_one

TRAIN, TEST = 40, 16


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published layout, the shards of both splits, and the config."""
    folder = tmp_path_factory.mktemp("charades")
    write_replica(folder / "C", {"train": TRAIN, "test": TEST})
    for split in ("train", "test"):
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
    assert one["trained"]["measures"]["mAP"] > one["trained"]["chance"]["mAP"] + 0.25
    assert list(one["trained"]["per_class"]) == NAMES
    run_ranks("-m", "rhofast", *command, "--resume", cwd=place)
    two = read_one(place / "evals/charades", "multilabel")  # trained before, and tested again
    assert (two["trained"], two["settings"]["test_crops"]) == (one["trained"], 3)
