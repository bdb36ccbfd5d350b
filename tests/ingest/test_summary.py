"""What a set holds and what its clips cost, against closed forms; and the picture of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rhofast.cli.tables import summary_table
from rhofast.config.schema import ClipConfig
from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.h26x import H264Codec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.codecs.stream_copy import CopyCodec
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow
from rhofast.data.sampling.clip_cost import clip_cost
from rhofast.data.types import TimedLabel, Units
from rhofast.ingest import summary
from rhofast.ingest.summary import Summary, summarize
from rhofast.ingest.summary_plot import _histogram, draw_summary
from tests.helpers.shards import FPS, NUM_FRAMES, NUM_VIDEOS, write_shards

ALL = ClipConfig(num_clips=1, num_frames=32, frame_stride=1, fps=10)
ONE = ClipConfig(num_clips=1, num_frames=1, frame_stride=1, fps=10)


def row(frame: list[int], size: list[int]) -> IndexRow:
    """A sample of 32 frames at 10 a second in units of these first frames and bytes."""
    units = Units(
        frame=np.array(frame, dtype=np.int32),
        offset=np.cumsum([0, *size[:-1]]).astype(np.int64),
        size=np.array(size, dtype=np.int32),
        crc=np.zeros(len(frame), dtype=np.uint32),
        rgb=np.zeros((len(frame), 3), dtype=np.float32),
    )
    return IndexRow(
        key="k",
        label=None,
        source_digest=b"",
        offset=0,
        size=sum(size),
        num_frames=32,
        fps=10.0,
        width=64,
        height=48,
        units=units,
    )


PICTURES = row(list(range(32)), [100] * 32)
GROUPS = row([0, 0, 8, 16, 24], [64, 800, 800, 800, 800])  # a header, four groups
BLOCKS = row([0, 0, 0], [1000, 1000, 1200])


@pytest.mark.parametrize(
    ("codec", "sample", "all_frames", "one_frame"),
    [
        (JpegCodec(), PICTURES, (3200, 1.0), (100, 1.0)),
        (H264Codec(gop=8), GROUPS, (3264, 1.0), (864, 864 / 102)),  # a frame's share of the header is 2 bytes
        (CopyCodec(), BLOCKS, (3200, 1.0), (3200, 32.0)),
    ],
)
def test_bytes_read_and_their_amplification_are_as_by_hand(
    codec: Codec, sample: IndexRow, all_frames: tuple[float, float], one_frame: tuple[float, float]
) -> None:
    assert clip_cost([codec], [sample, sample], ALL) == pytest.approx((*all_frames, 1.0))
    assert clip_cost([codec], [sample], ONE)[:2] == pytest.approx(one_frame)


def test_what_comes_before_a_frame_in_its_unit_is_decoded_and_what_comes_after_is_not() -> None:
    every = [[sample] * 400 for sample in (PICTURES, GROUPS, BLOCKS)]
    codecs = (JpegCodec(), H264Codec(gop=8), CopyCodec())
    costs = [clip_cost([codec], rows, ONE)[2] for codec, rows in zip(codecs, every, strict=True)]
    assert costs[0] == 1.0
    assert costs[1] == pytest.approx(4.5, abs=0.4)  # the mean of 1 to 8
    assert costs[2] == pytest.approx(16.5, abs=1.6)


def test_a_summary_counts_every_sample(shards: ShardSet) -> None:
    summary = summarize(shards, ClipConfig())
    assert summary.samples == NUM_VIDEOS and summary.frames == NUM_VIDEOS * NUM_FRAMES
    assert summary.durations == {NUM_FRAMES / FPS: NUM_VIDEOS}
    assert summary.seconds == (2.0, 2.0, 2.0)
    assert summary.hours == pytest.approx(NUM_VIDEOS * 2 / 3600)
    assert summary.sizes == {(64, 48): NUM_VIDEOS} and summary.rates == {12.0: NUM_VIDEOS}
    assert summary.labels == {"class 0": 5, "class 1": 4, "class 2": 4} and summary.unlabeled == 0
    assert sum(summary.weights.values()) == NUM_VIDEOS
    stored = sum(shards.row(sample).size for sample in range(NUM_VIDEOS))
    assert sum(weight * count for weight, count in summary.weights.items()) == pytest.approx(stored, rel=5e-4)
    assert summary.frame_bytes == pytest.approx(stored / summary.frames)


def test_of_a_large_set_some_shards_are_read_and_totals_are_of_all(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = summarize(shards, ClipConfig())
    assert (whole.read, whole.read_shards) == (NUM_VIDEOS, 3)
    monkeypatch.setattr(summary, "SHARDS", 2)
    seen: list[tuple[int, int]] = []
    some = summarize(shards, ClipConfig(), on_read=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert (some.read, some.read_shards) == (8, 2)  # of the first shard and of the last
    assert sum(some.durations.values()) == sum(some.labels.values()) == sum(some.sizes.values()) == 8
    totals = ("samples", "frames", "hours", "bytes", "shards")
    assert all(getattr(some, name) == getattr(whole, name) for name in totals)
    assert some.frame_bytes == pytest.approx(whole.frame_bytes, rel=0.05)
    assert summarize(shards, ClipConfig(), every=True) == whole
    text = " ".join(cell for column in summary_table(shards.info, some, ClipConfig()).columns for cell in column.cells)
    assert "8 samples, in 2 shards: all other counts are of these; --all reads all of them" in text
    table = summary_table(shards.info, whole, ClipConfig())
    assert "--all" not in " ".join(cell for column in table.columns for cell in column.cells)


# ---- the picture ----


def drawn(summary: Summary, path: Path) -> str:
    """The text of a picture: in an SVG, the drawn words stand in comments."""
    draw_summary(summary, path)
    return path.read_text()


def test_a_value_that_all_samples_have_is_in_the_middle_of_its_bar() -> None:
    axes = Figure().add_subplot()
    _histogram(axes, {8.0: 3}, str, ())
    (bar,) = (bar for bar in axes.containers[0] if bar.get_height())  # type: ignore[union-attr]
    assert bar.get_height() == 3 and bar.get_x() + bar.get_width() / 2 == pytest.approx(8.0)


def test_the_picture_says_what_is_in_the_set(shards: ShardSet, tmp_path: Path) -> None:
    summary = summarize(shards, ClipConfig())
    draw_summary(summary, tmp_path / "set.png")
    with Image.open(tmp_path / "set.png") as picture:
        assert picture.width > 1000 and np.asarray(picture.convert("L")).std() > 10
    text = drawn(summary, tmp_path / "set.svg")
    for words in (
        "tiny",
        "13 samples in 3 shards   ·   26 s of video   ·   312 frames",
        "median 2 s",
        "64 x 48",
        "class 1",
    ):
        assert f"<!-- {words}" in text, words
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_four_hundred_classes_are_one_curve_with_its_ends_named(shards: ShardSet, tmp_path: Path) -> None:
    labels = {f"action {number}": 1000 - number for number in range(399)} | {
        "a $very " + "$very " * 20 + "long name": 5
    }
    sizes = {(16 * width, 256): 10 for width in range(16, 60)}
    lengths = {0.5: 3, 10.0: 500, 4000.0: 1}
    summary = replace(
        summarize(shards, ClipConfig()), labels=labels, unlabeled=7, sizes=sizes, durations=lengths, samples=504
    )
    text = drawn(summary, tmp_path / "set.svg")
    for words in ("Labels (400 classes)", "most: 1,000", "action 0 ", "median: 800", "fewest: 5", "a $very $very"):
        assert f"<!-- {words}" in text, words
    for words in ("7 samples without label", "33 others", "1 min", "1 h"):
        assert f"<!-- {words}" in text, words
    assert "<!-- action 200 -->" not in text


def test_classes_are_counted_once_per_sample_whether_first_or_further(members: list[bytes], tmp_path: Path) -> None:
    timed = [TimedLabel(0, 0.0, 0.5), TimedLabel(0, 1.0, None), TimedLabel(2)]
    further = [[], timed, [TimedLabel(1, None, 1.0)], [], timed[2:]]
    only = summarize(write_shards(tmp_path / "only", members[:5], further=further, per_shard=2), ClipConfig())
    assert only.labels == {"class 0": 1, "class 1": 1, "class 2": 2} and only.unlabeled == 2
    assert only.several == (3, 5, 3)
    both = write_shards(tmp_path / "both", members[:5], labels=[0, 0, 1, 2, 1], further=further, per_shard=2)
    summary = summarize(both, ClipConfig())
    assert summary.labels == {"class 0": 2, "class 1": 2, "class 2": 3} and summary.unlabeled == 0
    drawn(summary, tmp_path / "set.svg")


def test_a_set_without_labels_says_so(members: list[bytes], tmp_path: Path) -> None:
    summary = summarize(write_shards(tmp_path / "set", members[:1]), ClipConfig())
    assert summary.labels == {} and summary.unlabeled == 1
    assert "<!-- this set has no labels -->" in drawn(summary, tmp_path / "set.svg")
