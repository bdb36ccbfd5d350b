"""A set whose classes have hostile names goes through every command that shows or stores names."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from rhofast.cli.app import app
from rhofast.config.load import load_config
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.display.fonts import drawn_text, font_runs, plot_names
from tests.helpers.results import read_one
from tests.helpers.shards import TINY_PAGE, encode_mjpeg, frame_pixels, write_shards

CLASSES = [
    *(
        "\x1b[31mred",
        "a\nb\x00",
        "$x_{$",
        r"$\frac{",
        "<script>alert(1)</script>",
        "&rho;",
        "[bold]t[/bold]",
        "_hidden",
    ),
    *("x" * 5000, "跑步 한국어", "हिन्दी🏃", "عربي", "a\u202eb\u200b", "caf%E9", "\\", "\U000e0041 \U0010ffff"),
]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A labeled set with one video per class."""
    root = tmp_path_factory.mktemp("named") / "set"
    videos = [encode_mjpeg([frame_pixels(video, frame) for frame in range(12)]) for video in range(len(CLASSES))]
    write_shards(root, videos, labels=list(range(len(CLASSES))))
    path = root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "classes": CLASSES, "name": "s$\n\x1b[2J"}))
    return open_folder(root)


def test_every_command_shows_such_names(named: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(TINY_PAGE)
    assert load_config(str(config), []).name == "tiny"
    data, run = ["--set", f"data.train={named.root}"], tmp_path / "runs" / "tiny"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")
        for command in (
            ["inspect", str(named.root), "--out", str(tmp_path / "i.png")],
            ["show", str(named.root), "--out", str(tmp_path / "s.png"), "--samples", "16", "--config", str(config)],
            ["train", str(config), *data, "--set", f"out={tmp_path / 'runs'}"],
            ["eval", "knn", str(run), "--test", str(named.root), "--allow-overlap"],
            ["embed", str(run), str(named.root), str(tmp_path / "e.parquet")],
            ["show", "neighbors", str(run), "--out", str(tmp_path / "n.png"), "--samples", "3"],
            ["report", str(run)],
        ):
            app(command, standalone_mode=False)
    printed = "".join(capsys.readouterr())
    assert all(one.isprintable() for one in printed.replace("\n", "").replace("\r", ""))
    for name in ("i.png", "s.png", "n.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.height < 10_000
    assert set(pq.read_table(tmp_path / "e.parquet")["class"].to_pylist()) == set(CLASSES)
    assert read_one(run, "knn")["classes"] == CLASSES
    assert "<script" not in (run / "report.html").read_text()


def test_what_no_font_has_is_drawn_as_its_escape() -> None:
    unassigned_glyph = "\U000140d7"  # an Anatolian hieroglyph
    texts, families = plot_names(["plain $", unassigned_glyph, "café"])
    assert texts[0] == r"plain \$" and texts[2] == "café" and families[0] == "DejaVu Sans"
    assert texts[1] in (unassigned_glyph, r"\U000140d7")
    drawn = drawn_text("a\n跑é")
    assert "".join(run for _, run in font_runs(drawn)) == drawn and drawn.startswith(r"a\n")
