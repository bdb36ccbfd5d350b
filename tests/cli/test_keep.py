"""`keep` on the command line: a part of a set for training, resuming, evaluating and embedding; errors are one line."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import rhofast
from rhofast.data.format.dataset import ShardSet
from tests.helpers.program import run
from tests.helpers.shards import TINY_PAGE

KEPT = [0, 2, 3, 4, 6, 9, 10, 12]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("COLUMNS", "200")
    Path("tiny.toml").write_text(TINY_PAGE)
    Path("k.txt").write_text("".join(f"v{number}\n" for number in KEPT))
    Path("rest.txt").write_text("".join(f"v{number}\n" for number in range(13) if number not in KEPT))


def test_a_run_on_a_part_is_continued_with_the_same_list_only(
    shards: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"data.train={{shards='{shards.root}', keep='k.txt'}}"
    arguments = ["tiny.toml", "--set", data, "--set", "out=.", "--set", "backbone.name=slow_r18"]
    assert run("train", *arguments) == 0
    assert "training on 8 of 13 samples (" in capsys.readouterr().err
    first = json.loads(Path("tiny/metrics.jsonl").read_text().splitlines()[0])
    assert first["samples"] == 8 and first["keep"].startswith("8 of 13 samples (")
    assert run("export", "tiny", "tiny.safetensors") == 0
    assert rhofast.load_backbone("tiny.safetensors").card["training"]["data"]["name"] == "tiny"

    resume = ["train", *arguments, "--resume", "--set", "train.steps=3", "--accept-changes"]
    Path("k.txt").write_text(Path("k.txt").read_text().replace("v12", "v11"))
    capsys.readouterr()
    assert run(*resume) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if "does not fit" in line]) == 1
    assert "keep was '8 of 13 samples (" in said[-2] and "hint: name the list" in said[-1]
    Path("k.txt").rename("moved.csv")  # another file with the same keys is the same list
    Path("moved.csv").write_text("key\n" + "".join(f"v{number}\n" for number in KEPT[::-1]))
    assert run(*[str(word).replace("k.txt", "moved.csv") for word in resume]) == 0


def test_lists_can_hold_out_samples_of_one_set(shards: ShardSet, capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "backbone.name=slow_r18",
        "backbone.width=4",
        "augment.size=16",
        "clips.num_frames=2",
        "clips.frame_stride=2",
    ]
    small = [word for setting in small for word in ("--set", setting)]
    sets = ["random", "--train", shards.root, "--test", shards.root]
    assert run("eval", "knn", *sets, *small, "--train-keep", "k.txt") == 2
    assert "8 of 13 test samples" in capsys.readouterr().err
    lists = ["--train-keep", "k.txt", "--test-keep", "rest.txt"]
    assert run("eval", "knn", *sets, *small, *lists, "--out", "knn.json") == 0
    result = json.loads(Path("knn.json").read_text())
    assert (result["shards"]["train"]["samples"], result["shards"]["test"]["samples"]) == (8, 5)
    assert run("embed", "random", shards.root, "x.parquet", "--keep", "k.txt", *small) == 0
    table = pq.read_table("x.parquet")
    assert table.column("key").to_pylist() == [f"v{number}" for number in KEPT]
    assert table.column("label").to_pylist() == [number % 3 for number in KEPT]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "keep=k.csv: No such file"),
        ("name\nv1\n", "keep=k.csv: there is no column 'key'; the columns are name"),
        ("key\nv1\nw1\n", "keep=k.csv: 1 of 2 keys is not in "),
        ("key,weight\nv1,-1\n", "keep=k.csv: the weight of 'v1' is -1"),
    ],
)
def test_what_is_wrong_with_a_list_is_one_line_and_exit_code_2(
    shards: ShardSet, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    if content is not None:
        Path("k.csv").write_text(content)
    for verb in (
        ["train", "tiny.toml", "--set", f"data.train={{shards='{shards.root}', keep='k.csv'}}", "--set", "out=."],
        ["embed", "random", shards.root, "x.npy", "--keep", "k.csv"],
    ):
        assert run(*verb) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error
