"""Action detection from movies to mAP: generated persons whose actions a small network learns in a minute."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image

from benchmarks.evaluation.ava_replica import PAGE, START, write_csv
from rhofast.checkpoint.checkpoint import load_checkpoint
from rhofast.data.format.dataset import ShardSet
from rhofast.evaluation.detection_task import open_detection_task
from rhofast.evaluation.detector import Detector
from rhofast.evaluation.results import beside
from rhofast.training.classify import Stopped
from rhofast.training.detect import DetectorTrainer, train_detector
from tests.helpers.actors import movie
from tests.helpers.program import run
from tests.helpers.results import read_one, result_path
from tests.helpers.saved import saved_bytes
from tests.helpers.shards import write_shards

SETS = {"train": range(16), "val": range(16, 24)}
WATCHED = ("eval.validation_epochs=1", "eval.validation_stride=2")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardSet]:
    """Training and test movies with boxes.arrow in their folders, made by the command from csv files."""
    root, found = tmp_path_factory.mktemp("ava"), {}
    for split, numbers in SETS.items():
        shards = write_shards(root / split, [movie(number) for number in numbers], start=START)
        files = write_csv(root / "csv", numbers, split=split)
        options = [part for name, path in files.items() for part in (f"--{name}", path)]
        assert run("boxes", shards.root, *options) == 0
        found[split] = shards
    return found


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "actors.toml").write_text(PAGE)
    return tmp_path / "actors.toml"


def command(sets: dict[str, ShardSet], page: Path, out: Path, *more: str) -> list[str]:
    where = ["--train", str(sets["train"].root), "--test", str(sets["val"].root), "--config", str(page)]
    return ["eval", "detection", "random", *where, "--set", f"out={out}", *more]


def test_a_small_network_learns_what_persons_do(
    sets: dict[str, ShardSet], page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    assert run(*command(sets, page, tmp_path)) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "actors"
    result = read_one(folder, "detection")
    trained = result["trained"]
    chance = trained["chance"]["mAP"]
    assert trained["measures"]["mAP"] > chance + 0.25 and 0.2 < chance < 0.7
    assert set(trained["per_class"]) == {"stand", "walk", "wave"} and trained["samples"] == 31
    assert f"{trained['measures']['mAP']:.1%}" in said and "detections.csv" in said
    with table_of(folder).open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 31 * 2 * 3 and {row[6] for row in rows} == {"8", "12", "17"}
    with Image.open(table_of(folder).with_suffix(".png")) as picture:
        assert np.asarray(picture).std() > 10 and picture.width > 600


def table_of(folder: Path) -> Path:
    """Return the scores of all boxes that lie beside the only result of a run."""
    return beside(result_path(folder, "detection"), "detections.csv")


def metrics(folder: Path, kind: str = "step") -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder)]


def train_in_double(sets: dict[str, Path], page: Path, out: Path, set_attribute: Callable[..., None]) -> None:
    """Train for six steps in float64 on key frames with one to four boxes, and note how many each step has."""
    task = open_detection_task(
        "random",
        sets["val"],
        train=sets["train"],
        config_file=page,
        overrides=[f"out={out}", "train.steps=6", "train.log_steps=1", "eval.batch_norm=sync", *WATCHED],
    )
    found = task.train_boxes
    first = np.isin(np.arange(len(found.boxes)), found.begins)
    task = replace(task, train_boxes=found.where(first | (np.random.default_rng(1).random(len(found.boxes)) < 0.4)))
    build, forward = DetectorTrainer.build_classifier, Detector.forward

    def forward_in_double(self: Detector, pixels: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        if self.training:
            with (out / f"boxes-{os.environ.get('RANK', 0)}-of-{os.environ.get('WORLD_SIZE', 1)}").open("a") as file:
                file.write(f"{len(boxes)}\n")
        return forward(self, pixels.double(), boxes)

    out.mkdir(parents=True, exist_ok=True)
    set_attribute(DetectorTrainer, "build_classifier", lambda self: build(self).double())
    set_attribute(Detector, "forward", forward_in_double)
    assert not isinstance(train_detector(task), Stopped)


def rank_of_two(
    rank: int, port: int, commands: list[list[str]], sets: dict[str, Path], page: Path, double: Path
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    for words in commands:
        assert run(*words) == 0
    train_in_double(sets, page, double, setattr)


def test_two_processes_take_the_steps_of_one_and_score_alike(
    sets: dict[str, ShardSet], page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks have different numbers of boxes; loss and dropout are those of the global batch nevertheless.

    In float32 the order of sums makes a difference in the last digit, which batch norm and a high rate enlarge from
    step to step. In float64 nothing is left of it.
    """
    torch.set_num_threads(1)
    short = [part for one in ("train.steps=2", "train.log_steps=1", "eval.batch_norm=sync") for part in ("--set", one)]
    assert run(*command(sets, page, tmp_path / "one", *short)) == 0
    folder = tmp_path / "one" / "actors"
    shutil.copytree(folder, tmp_path / "again" / "actors")
    shutil.rmtree(tmp_path / "again" / "actors" / "results")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    commands = [
        command(sets, page, tmp_path / "again", *short, "--resume"),  # nothing is left but the test
        command(sets, page, tmp_path / "two", *short),
    ]
    folders = {split: shards.root for split, shards in sets.items()}
    args = (port, commands, folders, page, tmp_path / "double")
    mp.start_processes(rank_of_two, args=args, nprocs=2, start_method="forkserver")  # type: ignore[no-untyped-call]
    again, two = tmp_path / "again" / "actors", tmp_path / "two" / "actors"
    assert table_of(again).read_bytes() == table_of(folder).read_bytes()
    results = [read_one(each, "detection")["trained"] for each in (folder, again)]
    assert results[0] == results[1]
    assert len(losses(folder)) == 2 and losses(two) == pytest.approx(losses(folder), rel=1e-6)
    train_in_double(folders, page, tmp_path / "single", monkeypatch.setattr)
    counts = [list(map(int, path.read_text().split())) for path in sorted((tmp_path / "double").glob("boxes-*"))] + [
        list(map(int, (tmp_path / "single" / "boxes-0-of-1").read_text().split()))
    ]
    assert [sum(pair) for pair in zip(*counts[:2], strict=True)] == counts[2] and len(counts[2]) == 6
    assert any(one != other for one, other in zip(*counts[:2], strict=True))
    numbers = [metrics(tmp_path / name / "actors") for name in ("single", "double")]
    for key, within in (("loss", 1e-12), ("top1", 1e-12)):
        one, other = ([line[key] for line in lines if key in line] for lines in numbers)
        assert one == pytest.approx(other, rel=within)
    looks = [metrics(tmp_path / name / "actors", "validation") for name in ("single", "double")]
    assert looks[0] == looks[1] and [(line["step"], line["samples"]) for line in looks[0]] == [(3, 16), (6, 16)]
    weights = [
        load_checkpoint(tmp_path / name / "actors/checkpoints/step-00000006").method for name in ("single", "double")
    ]
    for key, value in weights[0].items():
        assert torch.allclose(value, weights[1][key], rtol=1e-9, atol=1e-12), key


def test_a_stopped_training_continues_to_the_same_scores(sets: dict[str, ShardSet], page: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    short = ["--set", "train.steps=3", "--set", "train.checkpoint_steps=1"]
    assert run(*command(sets, page, tmp_path / "whole", *short)) == 0
    whole = tmp_path / "whole" / "actors"
    shutil.copytree(whole, tmp_path / "part" / "actors")
    part = tmp_path / "part" / "actors"
    shutil.rmtree(part / "results")
    shutil.rmtree(part / "checkpoints" / "step-00000003")
    (part / "checkpoints" / "latest").write_text("step-00000002")
    assert run(*command(sets, page, tmp_path / "part", *short, "--resume")) == 0
    assert table_of(part).read_bytes() == table_of(whole).read_bytes()


def test_another_test_set_leaves_what_belongs_to_the_first(
    sets: dict[str, ShardSet], page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Table, picture and curve of validation: of each set its own, in files that are named after its result."""
    torch.set_num_threads(1)
    looks = [part for one in ("train.steps=2", *WATCHED) for part in ("--set", one)]
    assert run(*command(sets, page, tmp_path, *looks)) == 0
    folder = tmp_path / "actors"
    first = {path.name: path.read_bytes() for path in (folder / "results").iterdir()}
    assert sorted(Path(name).suffix for name in first) == [".csv", ".json", ".png"]
    numbers = range(30, 33)
    other = write_shards(tmp_path / "other", [movie(number) for number in numbers], start=START)
    files = write_csv(tmp_path / "csv", numbers, split="val")
    assert run("boxes", other.root, *(part for name, path in files.items() for part in (f"--{name}", path))) == 0
    capsys.readouterr()
    assert run(*command({**sets, "val": other}, page, tmp_path, *looks, "--resume")) == 0
    said = capsys.readouterr().out
    now = {path.name: path.read_bytes() for path in (folder / "results").iterdir()}
    assert first.items() < now.items() and len(now) == 6
    (second,) = (json.loads(text) for name, text in now.items() if name.endswith(".json") and name not in first)
    (before,) = (json.loads(text) for name, text in first.items() if name.endswith(".json"))
    assert second["trained"]["samples"] == 11 and len(before["chosen"]["validation"]) == 1
    assert [point["epoch"] for point in second["chosen"]["validation"]] == pytest.approx([2 / 3])  # its own, of the end
    assert second["chosen"]["best_validation"] != before["chosen"]["best_validation"] and "-detections.png" in said
    assert {line["held_out"] for line in metrics(folder, "test")} == {
        line["held_out"].split("/")[0] for line in metrics(folder, "validation")
    }
    assert run("report", folder) == 0
    shown = (folder / "report.html").read_text()
    assert shown.count("alt='key frames with boxes'") == 2


def test_activations_that_are_computed_again_take_less_memory_for_the_same_weights(
    sets: dict[str, ShardSet], page: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    found, kept = [], []
    for again in ("false", "true"):
        settings = ["train.steps=2", "backbone.name=slow_r50", f"train.checkpoint_activations={again}"]
        task = open_detection_task(
            "random",
            sets["val"].root,
            train=sets["train"].root,
            config_file=page,
            overrides=[f"out={tmp_path / again}", *settings],
        )
        with saved_bytes() as count:
            assert not isinstance(train_detector(task), Stopped)
        kept.append(count["bytes"])
        found.append(load_checkpoint(tmp_path / again / "actors/checkpoints/step-00000002").method)
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())
    assert kept[1] < 0.5 * kept[0]


def test_a_vit_and_an_s3d_go_from_movies_to_map(
    sets: dict[str, ShardSet], page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test has whole frames of 96 x 64, resized to 54 x 36 or so: no multiple of a patch or a stride."""
    torch.set_num_threads(1)
    text = page.read_text()
    start, end = text.index("[backbone]"), text.index("[data]")
    vit = '[backbone]\nname = "vit"\nwidth = 24\ndepth = 2\nheads = 2\npatch = 8\nposition_side = 6\n'
    for name, section, more in (
        ("vit", f"{vit}resize_positions = true\n", []),
        ("s3d", '[backbone]\nname = "s3d"\nwidth = 4\n', ["--set", "clips.num_frames=8", "--set", "augment.size=64"]),
    ):
        page.write_text(text[:start] + section + text[end:])
        size = "eval.test_size=56" if name == "vit" else "eval.test_size=70"
        short = ["--set", "train.steps=1", "--set", f"name={name}", "--set", size, *more]
        short += ["--set", "augment.short_side=[64, 70]"] if name == "s3d" else []
        assert run(*command(sets, page, tmp_path, *short)) == 0
        assert read_one(tmp_path / name, "detection")["trained"]["samples"] == 31
    page.write_text(text[:start] + vit + text[end:])
    assert run(*command(sets, page, tmp_path / "numbered")) == 2
    assert "backbone.position=sincos1d numbers the patches" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--test-boxes", "nowhere.arrow"], "nowhere.arrow: no such file"),
        (["--set", "eval.box_score=0.99"], "no detected box has eval.box_score=0.99"),
        (["--set", "eval.label_smoothing=0.1"], "eval.label_smoothing=0.1: each action is learned by itself"),
        (["--set", "eval.repeats=2"], "eval.repeats=2: a key frame has one clip"),
        (["--set", "train.accumulate=2"], "train.accumulate=2: a detector is trained with 1"),
        (["--set", "train.compile=true"], "train.compile=true: a detector is trained without torch.compile"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_trained(
    sets: dict[str, ShardSet],
    page: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    says: str,
) -> None:
    assert run(*command(sets, page, tmp_path / "out", *more)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert says in lines[-2] and lines[-1].startswith("  hint: ")
    assert not (tmp_path / "out").exists()


def test_boxes_of_other_shards_or_classes_are_refused(
    sets: dict[str, ShardSet], page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(sets["val"].root / "boxes.arrow")
    assert run(*command(sets, page, tmp_path / "out", "--train-boxes", other)) == 2
    assert "the boxes belong to another shard set" in capsys.readouterr().err
    files = write_csv(tmp_path / "csv", SETS["val"], split="val")
    files["classes"].write_text('label { name: "stand" label_id: 12 }')
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    assert run("boxes", sets["val"].root, *options, "--out", tmp_path / "few.arrow") == 0
    assert run(*command(sets, page, tmp_path / "out", "--test-boxes", str(tmp_path / "few.arrow"))) == 2
    assert "the classes that count differ" in capsys.readouterr().err
