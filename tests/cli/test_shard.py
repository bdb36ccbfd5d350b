"""`rhofast shard` on folders and lists as users have them: the labels that are stored, and what the table says."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import pytest

from tests.helpers.program import run
from tests.helpers.shards import TINY_PAGE, encode_mjpeg, frame_pixels


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def video(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_mjpeg([frame_pixels(number, frame) for frame in range(4)]))


def shard(source: str, out: str, *options: str) -> dict[str, tuple[int | None, str | None]]:
    """Make shards, and return the label and its name by the name of the video."""
    assert run("shard", source, out, "--short-side", "32", "--workers", "1", *options) == 0
    with tarfile.open(Path(out) / "shard-000000.tar") as tar:
        found = [json.load(tar.extractfile(one)) for one in tar if one.name.endswith(".json")]  # type: ignore[arg-type]
    return {one["source"]: (one["label"], one["label_name"]) for one in found}


def classes(out: str) -> list[str]:
    found: list[str] = json.loads((Path(out) / "dataset.json").read_text())["classes"]
    return found


def test_a_folder_as_it_lies_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("run/a.mp4", "walk/b.ogv", "run/.ipynb_checkpoints/a-copy.mp4")):
        video(place / "set" / name, number)
    (place / "set/jump").mkdir()
    (place / "set/jump/lost.mp4").symlink_to("/nowhere/blob")
    (place / "set/run/a.srt").write_text("1")
    assert shard("set", "out") == {"a.mp4": (1, "run"), "b.ogv": (2, "walk")}
    assert classes("out") == ["jump", "run", "walk"]
    said = " ".join(capsys.readouterr().out.split())
    assert "videos listed │ 3" in said and "1 (1 missing)" in said
    assert "passed over │ 1 hidden, 1 other files (.srt)" in said
    assert run("shard", "set", "none", "--dry-run", "3", "--workers", "1", "--short-side", "32") == 0
    assert "Passed over: 1 hidden, 1 other files (.srt)." in " ".join(capsys.readouterr().out.split())


def test_a_list_with_a_header_and_one_with_an_odd_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        video(place / f"v{number}.mp4", number)
    rows = "v0.mp4,0\nv1.mp4,1\nv2.mp4,2\nv3.mp4,10\n"
    (place / "list.csv").write_text(f"file_name,label\n{rows}")
    expected = {f"v{number}.mp4": (label, None) for number, label in enumerate((0, 1, 2, 10))}
    assert shard("list.csv", "out") == expected
    for text, says in (
        (f"{rows}v3.mp4x,?\n", "list.csv:5: label '?' is a name"),
        ("v0.mp4,20231125\n", "list.csv:1: v0.mp4: label 20231125 is not in"),
        ("v0.mp4 25 0\n", "list.csv:1: 3 fields"),
    ):
        (place / "list.csv").write_text(text)
        capsys.readouterr()
        assert run("shard", "list.csv", "bad", "--short-side", "32") == 2
        printed = capsys.readouterr().err
        assert says in printed and "Traceback" not in printed and not (place / "bad").exists()


def test_a_set_gets_classes_by_appending(place: Path) -> None:
    video(place / "a.mp4", 0)
    (place / "list.csv").write_text("a.mp4 2\n")
    shard("list.csv", "out")
    assert classes("out") == ["0", "1", "2"]
    video(place / "b.mp4", 1)
    (place / "list.csv").write_text("a.mp4 2\nb.mp4 1\n")
    (place / "names.txt").write_text("0\nrun\n2\nswim\n")
    shard("list.csv", "out", "--append", "--option", "classes=names.txt")
    assert classes("out") == ["0", "run", "2", "swim"]  # no sample had the number 1 for a name


def test_a_held_out_set_of_one_class_is_evaluated(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        video(place / f"S/videos/{number}.mp4", number)
    templates = {"Holding something": "0", "Pushing something": "1", "Tearing something": "2"}
    splits = {"train": [("0", "Holding [something]"), ("1", "Pushing [something]"), ("2", "Tearing [something]")]}
    splits["validation"] = [("3", "Tearing [something]")]
    (place / "S/labels").mkdir()
    (place / "S/labels/labels.json").write_text(json.dumps(templates))
    for name, entries in splits.items():
        content = [{"id": key, "template": template} for key, template in entries]
        (place / f"S/labels/{name}.json").write_text(json.dumps(content))
    for split in ("train", "val"):
        shard("S", split, "--recipe", "ssv2", "--option", f"split={split}", "--split", split)
        assert classes(split) == list(templates)
    (place / "tiny.toml").write_text(TINY_PAGE)
    assert run("eval", "knn", "random", "--train", "train", "--test", "val", "--config", "tiny.toml") == 0
    assert "Tearing something" in capsys.readouterr().out
