"""Fields of the samples in a batch: keys, labels by time, and the user's own; read only if they are asked for."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import rhofast
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow
from rhofast.data.sampling.labels import labels_in_clips
from rhofast.data.sources import open_shards
from rhofast.data.types import TimedLabel
from rhofast.errors import ConfigError, SampleError
from tests.helpers.shards import FPS, NUM_FRAMES, write_shards

SMALL: dict[str, Any] = {"num_frames": 2, "frame_stride": 4, "fps": FPS, "size": 16, "batch_size": 4}
SECONDS = NUM_FRAMES / FPS
# Class 3 for a second of each video that begins later in later videos, class 4 in all of some of them.
FURTHER = [
    [TimedLabel(3, video / 13, min(video / 13 + 1, SECONDS)), *([TimedLabel(4)] if video % 4 == 0 else [])]
    for video in range(13)
]
EXTRA = [{"caption": f"video {video}", "boxes": [[video, 0.5]]} if video else None for video in range(13)]


@pytest.fixture
def noted(members: list[bytes], tmp_path: Path) -> ShardSet:
    """Thirteen videos with a label of 0, 1, 2, further labels and fields of the user's own; the first has no fields."""
    labels = [video % 3 for video in range(13)]
    return write_shards(tmp_path / "noted", members, labels=labels, further=FURTHER, extra=EXTRA)


def expected_labels(video: int, frames: list[int]) -> list[bool]:
    """By hand, and by frames: a class holds if a moment of a frame from the first to the last is within its time."""
    held = [False] * 5
    held[video % 3] = True
    moments = np.arange(min(frames) * 100, (max(frames) + 1) * 100 + 1) / (100 * FPS)
    inner = moments[1:-1]
    for label, start, end in FURTHER[video]:
        begin, stop = 0.0 if start is None else start, SECONDS if end is None else end
        held[label] |= bool(((inner > begin) & (inner < stop)).any())
    return held


def test_a_batch_has_the_fields_that_were_asked_for_in_the_order_of_its_samples(noted: ShardSet) -> None:
    fields = ["labels", "label", "key", "extra"]
    with rhofast.clips(noted.root, **SMALL, fields=fields) as loader:
        for views in loader:
            videos = views.sample.tolist()
            assert list(views) == ["pixels", "sample", "label", "labels", "key", "extra"]
            assert views.label.tolist() == [video % 3 for video in videos]
            assert views.key == [f"v{video}" for video in videos]
            assert views.extra == [EXTRA[video] or {} for video in videos]
            assert views["extra.caption"] == [f"video {video}" if video else None for video in videos]
            assert views.labels is not None and views.labels.dtype == torch.bool
            assert views.labels.shape == (4, 2, 5) and views.labels[..., :3].sum(dim=2).eq(1).all()
            assert (lambda **given: given["key"])(**views) is views.key


def test_labels_are_those_that_hold_while_the_clip_is_shown(noted: ShardSet) -> None:
    """Red says which frame a clip shows, so the span is known from the pixels."""
    plain = {"augment.mean": (0.0, 0.0, 0.0), "augment.std": (1.0, 1.0, 1.0)}
    given = {**SMALL, "size": 48, "augment": "none", "num_clips": 3, "batch_size": 13}
    seen = set[bool]()
    with rhofast.clips(noted, **given, fields=["labels"], options=plain) as loader:
        for _ in range(3):
            views = next(loader)
            assert views.labels is not None
            red = (views.pixels[:, :, 0].mean(dim=(3, 4)) * 255 / 8).round().int()
            for place, video in enumerate(views.sample.tolist()):
                for clip in range(3):
                    expected = expected_labels(video, red[place, clip].tolist())
                    assert views.labels[place, clip].tolist() == expected
                    seen.add(expected[3])
    assert seen == {True, False}


def test_labels_and_spans_that_touch_have_nothing_in_common(noted: ShardSet) -> None:
    def held(frames: list[int], *labels: TimedLabel, label: int | None = None) -> list[bool]:
        row = replace(noted.row(0), label=label, labels=labels, num_frames=40, fps=10.0)
        return labels_in_clips([row], np.array([[frames]], dtype=np.int32), 2)[0, 0].tolist()

    assert held([10, 19], TimedLabel(1, 2.0, 3.0)) == [False, False]  # it ends at 2 s
    assert held([10, 20], TimedLabel(1, 2.0, 3.0)) == [False, True]
    assert held([30, 31], TimedLabel(1, 2.0, 3.0)) == [False, False]  # it begins at 3 s
    assert held([29, 31], TimedLabel(1, 2.0, 3.0)) == [False, True]
    assert held([38, 5], TimedLabel(1, 2.0, 3.0)) == [False, True]  # between them, in any order
    assert held([0, 0], TimedLabel(1, None, 0.05)) == [False, True]
    assert held([1, 1], TimedLabel(1, None, 0.05)) == [False, False]
    assert held([39], TimedLabel(1, 3.95, None), label=0) == [True, True]
    assert held([], TimedLabel(1, None, None)) == [False, False]


def test_chosen_fields_alone_are_handed_over(noted: ShardSet) -> None:
    with rhofast.eval_clips(noted, **SMALL, fields=["extra.caption"]) as loader:
        batches = list(loader)
    assert [one for views in batches for one in views.extra or []] == [
        {"caption": f"video {video}"} if video else {} for video in range(13)
    ]
    assert [one for views in batches for one in views["extra.caption"]] == [
        f"video {video}" if video else None for video in range(13)
    ]
    assert batches[0].labels is None and batches[0].key is None and "key" not in batches[0]
    with pytest.raises(KeyError, match="'key' is not in the batch, which has pixels, sample, label, extra"):
        batches[0]["key"]


def test_pixels_are_the_same_and_nothing_more_is_read_without_fields(
    noted: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = {int(index.json_size[row]) for index in map(noted.index, range(3)) for row in range(len(index))}
    reads: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: (reads.append(size), pread(fd, size, offset))[1])
    with rhofast.clips(noted, **SMALL, fields=["label", "labels", "key"]) as without:
        left = next(without)
    assert reads and notes.isdisjoint(reads)
    with rhofast.clips(noted, **SMALL, fields=["extra"]) as loader:
        right = next(loader)
    assert torch.equal(left.pixels, right.pixels)
    assert not notes.isdisjoint(reads)
    sizes = [noted.row(sample).json_size for sample in left.sample.tolist()]
    assert loader.stats.bytes_read - without.stats.bytes_read == sum(sizes)


def damage_note(shards: ShardSet, sample: int) -> None:
    row, (shard, _) = shards.row(sample), shards.locate(sample)
    path = shards.root / shards.info.shards[shard].tar
    content = bytearray(path.read_bytes())
    content[row.json_offset + 3] ^= 1
    path.write_bytes(content)


def test_a_damaged_note_is_a_bad_sample_only_where_it_is_read(noted: ShardSet) -> None:
    damage_note(noted, 6)
    for fields, bad in (([], []), (["extra"], ["v6"])):
        with rhofast.eval_clips(noted, **SMALL, fields=fields) as loader:
            seen = [number for views in loader for number in views.sample.tolist()]
        assert [error.key for error in loader.bad] == bad
        assert len(seen) == 13 - len(bad)
        assert all("KEY.json: checksum mismatch" in error.reason for error in loader.bad)
    with rhofast.clips(noted, **SMALL, fields=["extra", "key"]) as training:
        epoch = list(training)
    assert training.stats.bad >= 1
    assert len(epoch) == 3 and all("v6" not in (views.key or []) and len(views.extra or []) == 4 for views in epoch)


def test_lists_stay_where_they_are_when_a_batch_moves(noted: ShardSet) -> None:
    with rhofast.clips(noted, **SMALL, fields=["labels", "key", "extra"]) as loader:
        views = next(loader)
    assert views.to("cpu") is views
    moved = views.to("meta")
    assert moved.labels is not None and moved.labels.device.type == "meta"
    assert moved.key is views.key and moved.extra is views.extra
    assert "key=list[4], extra=list[4]" in repr(views) and "labels=bool[4, 2, 5]" in repr(views)


def test_fields_of_a_part_of_a_set_are_those_of_its_samples(noted: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("v9\nv4\nv11\n")
    part = open_shards(noted.root, keep=tmp_path / "keys.txt")
    fields = ["key", "labels", "extra.caption"]
    with rhofast.eval_clips(part, **{**SMALL, "num_frames": 12, "frame_stride": 2}, fields=fields) as loader:
        (views,) = list(loader)
    assert views.key == ["v4", "v9", "v11"]
    assert views["extra.caption"] == ["video 4", "video 9", "video 11"]
    assert views.labels is not None
    assert views.labels[:, 0].tolist() == [expected_labels(video, list(range(24))) for video in (4, 9, 11)]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (["extra.title"], "none of 13 samples of .*noted has 'extra.title'; they have caption, boxes"),
        (["extra."], "unknown field 'extra.'"),
        ([3], "unknown field 3"),
        (3, "fields=3 must be a list of names"),
    ],
)
def test_fields_that_are_not_there_are_one_line(noted: ShardSet, fields: Any, says: str) -> None:
    for opened in (rhofast.clips, rhofast.eval_clips):
        with pytest.raises(ConfigError, match=says):
            opened(noted, **SMALL, fields=fields)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=says):
        rhofast.ClipDataset(noted.root, fields=fields)


def test_labels_of_sets_with_other_classes_do_not_mix(
    noted: ShardSet, shards: ShardSet, members: list[bytes], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"'labels' needs the same classes in all sets; .*shards has others than"):
        rhofast.clips([noted.root, shards.root], **SMALL, fields=["labels"])
    bare = write_shards(tmp_path / "bare", members[:4])
    for name in ("label", "labels"):
        with pytest.raises(ConfigError, match=f"'{name}' is not in .*bare: its videos have no labels"):
            rhofast.clips(bare, **SMALL, fields=[name])
    with pytest.raises(ConfigError, match=r"'extra.caption'; they have no fields of your own"):
        rhofast.clips(bare, **SMALL, fields=["extra.caption"])
    with rhofast.clips([noted.root, bare.root], **SMALL, fields=["extra", "key"]) as mixed:
        assert all(len(views.extra or []) == 4 for views in mixed)


def mean_color(frames: torch.Tensor, row: IndexRow) -> torch.Tensor:
    return frames.float().mean()


def test_items_of_a_dataset_have_fields_too(noted: ShardSet) -> None:
    dataset = rhofast.ClipDataset(noted.root, fields=["label", "labels", "key", "extra"])
    for video in range(13):
        item = dataset[video, [0, 5]]
        assert list(item) == ["frames", "label", "labels", "key", "extra"]
        assert torch.equal(item["frames"], rhofast.ClipDataset(noted.root)[video, [0, 5]])
        assert (item["label"], item["key"], item["extra"]) == (video % 3, f"v{video}", EXTRA[video] or {})
        assert item["labels"].tolist() == expected_labels(video, [0, 5])
    fields = ["label", "labels", "key"]
    dataset_of_means = rhofast.ClipDataset(noted.root, fields=fields, transform=mean_color)
    pairs: Any = [(video, [0, 5]) for video in (7, 2)]
    (batch,) = DataLoader(pickle.loads(pickle.dumps(dataset_of_means)), batch_size=2, sampler=pairs)
    assert (batch["label"].tolist(), batch["key"]) == ([1, 2], ["v7", "v2"])
    assert batch["frames"].shape == (2,) and batch["labels"].tolist() == [
        expected_labels(video, [0, 5]) for video in (7, 2)
    ]
    damage_note(noted, 3)
    with pytest.raises(SampleError, match=r"KEY.json: checksum mismatch .shard-000000.tar, key 'v3'"):
        dataset[3, [0]]
    assert torch.is_tensor(rhofast.ClipDataset(noted.root, fields=[])[3, [0]])
