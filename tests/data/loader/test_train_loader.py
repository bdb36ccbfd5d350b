"""The loader's promises: pure batches, resume, ranks, replacement, nothing left running."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.reader import Reader
from rhofast.data.loader.eval_loader import EvalLoader
from rhofast.data.loader.threaded_pipeline import ThreadedPipeline
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.batch_plan import training_plan
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.types import Position, Sample, Views
from rhofast.errors import ConfigError, ResumeError, ShardError, TooManyBadSamplesError
from tests.helpers.shards import ROOT, STREAMS, damage_unit, write_shards

CLIPS = ClipConfig(num_clips=2, num_frames=3, frame_stride=2, fps=12)
AUGMENT = AugmentConfig(size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
PLAIN = AugmentConfig(size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), color=0.0, gray=0.0, blur=0.0, flip=0.0)


def loader(
    shards: ShardSet | Mixture,
    *,
    augment: AugmentConfig = AUGMENT,
    threads: int = 2,
    max_bad: float = 0.01,
    timeout_s: float = 600.0,
    block_shards: int | None = None,
    **options: object,
) -> TrainLoader:
    arguments = {"batch_size": 4, "seed": 11, "clips": CLIPS, **options}
    data = DataConfig(
        threads=threads, decode_threads=threads, max_bad=max_bad, timeout_s=timeout_s, block_shards=block_shards
    )
    return TrainLoader(shards, augment=augment, data=data, **arguments)  # type: ignore[arg-type]


def take(source: TrainLoader, count: int) -> list[Views]:
    with source:
        return [next(source) for _ in range(count)]


def same(left: Views, right: Views) -> bool:
    return torch.equal(left.sample, right.sample) and torch.equal(left.pixels, right.pixels)


def flip_byte_of(shards: ShardSet, sample: int) -> None:
    """Damage every picture of a sample."""
    row, (shard, _) = shards.row(sample), shards.locate(sample)
    path = shards.root / shards.info.shards[shard].tar
    content = bytearray(path.read_bytes())
    for offset in row.units.offset:
        content[row.offset + int(offset) + 200] ^= 1
    path.write_bytes(content)


def test_views_carry_the_right_frames_samples_and_labels(shards: ShardSet) -> None:
    for views in take(loader(shards, augment=PLAIN), 4):
        assert views.pixels.shape == (4, 2, 3, 3, 16, 16)
        assert views.label.tolist() == [sample % 3 for sample in views.sample.tolist()]
        color = views.pixels.mean(dim=(-1, -2)) * 255  # [B, P, C, T]
        assert torch.allclose(color[:, :, 1], 8.0 * views.sample.view(4, 1, 1), atol=4)
        frame = color[:, :, 0] / 8
        assert (frame.diff(dim=-1) > 0.5).all() and frame.max() < 24


def test_an_epoch_visits_each_sample_at_most_once_and_epochs_differ(shards: ShardSet) -> None:
    batches = take(loader(shards), 6)
    epochs = [torch.cat([views.sample for views in batches[part]]).tolist() for part in (slice(0, 3), slice(3, 6))]
    assert all(len(set(epoch)) == 12 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_batches_do_not_depend_on_the_number_of_threads(shards: ShardSet) -> None:
    one, four = (take(loader(shards, threads=threads), 4) for threads in (1, 4))
    assert all(same(left, right) for left, right in zip(one, four, strict=True))


def test_batches_are_the_same_bytes_in_another_process(shards: ShardSet) -> None:
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "import tests.data.loader.test_train_loader as t\n"
        "from rhofast.data.format.dataset import open_folder\n"
        "views = t.take(t.loader(open_folder(Path(sys.argv[2]))), 2)\n"
        "print(hashlib.sha256(b''.join(v.pixels.contiguous().numpy().tobytes() for v in views)).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(ROOT), str(shards.root)]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    here = b"".join(views.pixels.contiguous().numpy().tobytes() for views in take(loader(shards), 2))
    assert hashlib.sha256(here).hexdigest() == there


def test_two_ranks_together_are_one(shards: ShardSet) -> None:
    whole = take(loader(shards), 4)
    parts = [take(loader(shards, rank=rank, world_size=2), 4) for rank in range(2)]
    for views, left, right in zip(whole, *parts, strict=True):
        assert torch.equal(views.sample, torch.cat([left.sample, right.sample]))
        assert torch.equal(views.pixels, torch.cat([left.pixels, right.pixels]))


@pytest.mark.parametrize("consumed", [1, 3, 5])
def test_resume_continues_the_same_batches(shards: ShardSet, consumed: int) -> None:
    straight = take(loader(shards), 8)
    first = loader(shards)
    for _ in range(consumed):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))  # it must survive a file
    first.close()
    second = loader(shards, rank=0, world_size=1)
    second.load_state_dict(state)
    rest = take(second, 8 - consumed)
    assert all(same(left, right) for left, right in zip(straight[consumed:], rest, strict=True))


def test_resume_on_two_ranks_after_one(shards: ShardSet) -> None:
    straight = take(loader(shards), 5)
    first = loader(shards)
    next(first), next(first)
    state = first.state_dict()
    first.close()
    parts = []
    for rank in range(2):
        part = loader(shards, rank=rank, world_size=2)
        part.load_state_dict(state)
        parts.append(take(part, 3))
    for views, left, right in zip(straight[2:], *parts, strict=True):
        assert torch.equal(views.pixels, torch.cat([left.pixels, right.pixels]))


def test_a_state_of_other_data_is_refused(shards: ShardSet) -> None:
    with loader(shards) as source:
        state = source.state_dict()
        with pytest.raises(ResumeError, match=r"seed was 5, is 11; digest was 'x'") as caught:
            source.load_state_dict({**state, "seed": 5, "digest": "x"})
        assert str(caught.value).count(";") == 1


def test_a_bad_sample_is_replaced_the_same_way_everywhere_and_named(shards: ShardSet, tmp_path: Path) -> None:
    before = take(loader(shards), 3)
    bad = int(before[1].sample[2])
    flip_byte_of(shards, bad)
    log = tmp_path / "bad_samples.jsonl"
    after = take(loader(shards, bad_log=log), 3)
    again = [take(loader(shards, rank=rank, world_size=2), 3) for rank in range(2)]
    replacement = int(after[1].sample[2])
    assert replacement != bad and replacement not in before[1].sample.tolist()
    kept = [0, 1, 3]
    assert torch.equal(after[1].pixels[kept], before[1].pixels[kept])
    assert same(after[0], before[0]) and same(after[2], before[2])
    assert int(again[1][1].sample[0]) == replacement
    lines = [json.loads(text) for text in log.read_text().splitlines()]
    (line,) = [line for line in lines if line["epoch"] == 0]  # reading ahead may have met it again in the next epoch
    assert (line["sample"], line["key"], line["epoch"], line["position"]) == (bad, f"v{bad}", 0, 4)
    assert "checksum" in line["reason"] and line["shard"].endswith(".tar")


def test_a_missing_shard_is_survived_and_too_many_bad_samples_are_not(shards: ShardSet) -> None:
    (shards.root / "shard-000002.arrow").unlink()
    (shards.root / "shard-000002.tar").unlink()
    with loader(shards) as source:
        seen = torch.cat([next(source).sample for _ in range(6)])
        assert seen.max() < 10 and source.stats.bad > 0
    with loader(shards, max_bad=0.0) as source, pytest.raises(TooManyBadSamplesError, match="shard-000002"):
        for _ in range(3):
            next(source)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rhofast-")]


def threads_left_after(seconds: float) -> list[str]:
    """The loader's threads that do not end within some time."""
    mine = [thread for thread in threading.enumerate() if thread.name.startswith("rhofast-")]
    for thread in mine:
        thread.join(seconds)
    return [thread.name for thread in mine if thread.is_alive()]


def broken(source: TrainLoader | EvalLoader, victims: set[int], monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Let these samples come from the reader as the decoder does not take them, as if they had been stored so."""
    (reader,) = source._readers
    read = reader.read

    def spoiled(sample: int, *given: Any, **more: Any) -> Sample:
        result = read(sample, *given, **more)
        if sample in victims:
            for frame, picture in result.pictures.items():
                result.pictures[frame] = (
                    np.zeros(64, dtype=np.uint8) if how == "garbage" else picture[: len(picture) // 2]
                )
        return result

    monkeypatch.setattr(reader, "read", spoiled)


@pytest.mark.parametrize(("how", "ahead"), [("garbage", False), ("cut short", False), ("cut short", True)])
def test_what_the_decoder_refuses_is_replaced_and_all_else_stays(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, ahead: bool
) -> None:
    straight = take(loader(shards, augment=PLAIN), 6)
    log = tmp_path / "bad.jsonl"
    source = loader(shards, augment=PLAIN, bad_log=log, max_bad=1.0)
    victims = set(source.samples(source.position)[[1, 2]].tolist())
    broken(source, victims, monkeypatch, how)
    for pipeline in source._decoders._pipelines.values():
        monkeypatch.setattr(pipeline, "_ahead", ahead)  # as on a GPU
    with source:
        repaired = [next(source) for _ in range(6)]
    for clean, other in zip(straight, repaired, strict=True):
        fine = [place for place, sample in enumerate(clean.sample.tolist()) if sample not in victims]
        assert other.sample[fine].tolist() == clean.sample[fine].tolist()
        assert torch.equal(other.pixels[fine], clean.pixels[fine])
        assert not victims & set(other.sample.tolist())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["sample"] for line in lines} == victims
    assert all("decoder refused" in line["reason"] and line["key"] == f"v{line['sample']}" for line in lines)


def test_evaluation_leaves_out_what_the_decoder_refuses(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"clips": CLIPS, "augment": PLAIN, "data": DataConfig(), "batch_size": 4, "views": 2}
    source = EvalLoader(shards, **options)  # type: ignore[arg-type]
    broken(source, {5, 8, 9, 10, 11}, monkeypatch, "cut short")  # the third batch is lost as a whole
    with source:
        assert [sample for views in source for sample in views.sample.tolist()] == [0, 1, 2, 3, 4, 6, 7, 12]
    assert [error.key for error in source.bad] == ["v5", "v8", "v9", "v10", "v11"]


def test_an_error_of_the_decoder_that_no_sample_causes_ends_the_run(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = loader(shards)
    (pipeline,) = source._decoders._pipelines.values()
    take_pixels, calls = pipeline._take, []

    def failing(*given: object) -> torch.Tensor:
        calls.append(given)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return take_pixels(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "_take", failing)
    with source, pytest.raises(RuntimeError, match="out of memory"):
        next(source)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rhofast-")]


def test_a_replay_is_the_batch_that_training_got(shards: ShardSet) -> None:
    flip_byte_of(shards, 4)
    for rank in range(2):
        source = loader(shards, rank=rank, world_size=2, max_bad=1.0)
        positions, batches = [], []
        with source:
            for _ in range(5):
                positions.append(source.position)
                batches.append(next(source))
        for at, views in reversed(list(zip(positions, batches, strict=True))):
            with loader(shards, rank=rank, world_size=2, max_bad=1.0) as again:
                replay = again.replay(at)
            assert same(replay.views, views)
            assert [row.key for row in replay.rows] == [f"v{sample}" for sample in views.sample.tolist()]
            mine = again.samples(at)[2 * rank : 2 * rank + 2].tolist()
            assert list(replay.replaced) == [slot for slot, sample in enumerate(mine) if sample == 4]
    with source, pytest.raises(ValueError, match="replays nothing"):
        source.replay(positions[0])


def test_a_read_that_hangs_ends_the_run_and_names_the_stage(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    source = loader(shards, timeout_s=1.0)
    release = threading.Event()
    monkeypatch.setattr("rhofast.data.loader.threaded_pipeline._FAREWELL_S", 0.1)
    monkeypatch.setattr(source._reads, "_read_one", lambda *_: release.wait(20))
    with pytest.raises(ShardError, match="stage 'read' has worked on one item"):
        next(source)
    source.close()  # does not wait for it
    release.set()
    assert threads_left_after(5) == []


def test_a_thread_that_dies_is_noticed(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    work = ThreadedPipeline._work

    def dies(pipeline: ThreadedPipeline[object], number: int) -> None:
        if number != 1:
            work(pipeline, number)

    monkeypatch.setattr(ThreadedPipeline, "_work", dies)
    with loader(shards) as source, pytest.raises(ShardError, match="thread of stage 'read' has died"):
        next(source)
    assert threads_left_after(5) == []


def test_slow_reads_change_nothing_but_the_time(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = take(loader(shards), 3)
    source = loader(shards)
    (reader,) = source._readers
    read = reader.read

    def slow(sample: int, *given: Any, **more: Any) -> Sample:
        time.sleep(0.02 * (sample % 3))
        return read(sample, *given, **more)

    monkeypatch.setattr(reader, "read", slow)
    assert all(same(left, right) for left, right in zip(straight, take(source, 3), strict=True))


def test_a_batch_that_does_not_fit_is_a_config_error(shards: ShardSet) -> None:
    with pytest.raises(ConfigError, match="14 does not fit into 13 samples"):
        loader(shards, batch_size=14)
    with pytest.raises(ConfigError, match="divided among 3"):
        loader(shards, world_size=3)


def test_closing_in_the_middle_leaves_no_thread(shards: ShardSet) -> None:
    source = loader(shards)
    next(source)
    source.close()
    source.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rhofast-")]


def test_stats_add_up(shards: ShardSet) -> None:
    with loader(shards) as source:
        for _ in range(3):
            next(source)
        stats = source.stats
    assert (stats.batches, stats.clips, stats.frames) == (3, 24, 72)
    assert stats.bytes_read > 0
    assert 0 < stats.wait_s <= stats.seconds
    assert list(stats.stages) == ["plan", "read", "decode", "finish"] and stats.stages["decode"].busy > 0


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_sample_exactly_once(shards: ShardSet, world: int) -> None:
    seen: list[int] = []
    for rank in range(world):
        options = {"clips": CLIPS, "augment": PLAIN, "data": DataConfig(), "batch_size": 4, "views": 3}
        with EvalLoader(shards, rank=rank, world_size=world, **options) as source:
            for views in source:
                assert views.pixels.shape[1:] == (3, 3, 3, 16, 16)
                seen += views.sample.tolist()
    assert seen == list(range(13))


def test_a_batch_of_evaluation_beyond_all_memory_is_refused(shards: ShardSet) -> None:
    options = {"clips": CLIPS, "augment": AugmentConfig(size=4096), "data": DataConfig(), "batch_size": 64, "views": 9}
    with pytest.raises(ConfigError, match=r"the limit is 4,294,967,296 \(decrease eval\.batch_size"):
        EvalLoader(shards, **options)  # type: ignore[arg-type]


def test_evaluation_leaves_bad_samples_out_and_says_so(shards: ShardSet, tmp_path: Path) -> None:
    flip_byte_of(shards, 6)
    log = tmp_path / "bad.jsonl"
    options = {"clips": CLIPS, "augment": PLAIN, "data": DataConfig(), "batch_size": 4, "views": 1}
    with EvalLoader(shards, bad_log=log, **options) as source:
        seen = [sample for views in source for sample in views.sample.tolist()]
    assert seen == [sample for sample in range(13) if sample != 6]
    assert [error.key for error in source.bad] == ["v6"] and "v6" in log.read_text()


# Shards of video streams, decoded on the host: the same promises.

h264 = pytest.mark.parametrize("stream_shards", ["h264"], indirect=True)


def two_units(shards: ShardSet, sample: int, epoch: int) -> tuple[int, int]:
    """A group of pictures that the sample's clips of an epoch need, and one that they do not: units of its row."""
    row = shards.row(sample)
    plan, _ = training_plan([row], np.array([sample]), CLIPS, AUGMENT, seed=11, epoch=epoch)
    needed = Reader(shards).codecs[row.codec].units_for(row.units, row.num_frames, np.unique(plan.frames))
    return int(needed[-1]), next(unit for unit in range(len(row.units.frame)) if unit not in needed)


def shows_its_plan(views: Views, shards: ShardSet, clips: ClipConfig) -> None:
    """Each frame of a batch of the first epoch is the one that its sample's plan names, of that sample."""
    rows = [shards.row(sample) for sample in views.sample.tolist()]
    plan, _ = training_plan(rows, views.sample.numpy(), clips, PLAIN, seed=11, epoch=0)
    color = (views.pixels.mean(dim=(-1, -2)) * 255 / 8).round()  # [B, P, C, T]
    assert np.array_equal(color[:, :, 0].numpy(), plan.frames)
    assert torch.equal(color[:, :, 1], views.sample.view(-1, 1, 1).expand(plan.frames.shape).float())


@pytest.mark.parametrize("num_clips", [1, 2, 4])
def test_streams_give_the_frames_of_the_plan(stream_shards: ShardSet, num_clips: int) -> None:
    clips = CLIPS.model_copy(update={"num_clips": num_clips})
    for views in take(loader(stream_shards, augment=PLAIN, clips=clips), 3):
        assert views.pixels.shape == (4, max(num_clips, 2), 3, 3, 16, 16)
        assert views.label.tolist() == [sample % 3 for sample in views.sample.tolist()]
        shows_its_plan(views, stream_shards, clips)


def test_streams_and_pictures_of_the_same_videos_give_the_same_batches(
    shards: ShardSet, stream_shards: ShardSet
) -> None:
    two = [take(loader(given, augment=PLAIN), 3) for given in (shards, stream_shards)]
    for pictures, stream in zip(*two, strict=True):
        assert torch.equal(pictures.sample, stream.sample)
        difference = (pictures.pixels - stream.pixels).abs() * 255
        assert difference.max() <= 10 and difference.mean() <= 2


@h264
def test_stream_batches_depend_on_neither_threads_nor_ranks(stream_shards: ShardSet) -> None:
    whole, *others = (take(loader(stream_shards, threads=threads), 4) for threads in (1, 3))
    for other in others:
        assert all(same(left, right) for left, right in zip(whole, other, strict=True))
    parts = [take(loader(stream_shards, rank=rank, world_size=2), 4) for rank in range(2)]
    for views, left, right in zip(whole, *parts, strict=True):
        assert torch.equal(views.pixels, torch.cat([left.pixels, right.pixels]))


@h264
def test_streams_resume_with_the_same_batches(stream_shards: ShardSet) -> None:
    straight = take(loader(stream_shards), 5)
    first = loader(stream_shards)
    next(first), next(first)
    state = first.state_dict()
    first.close()
    second = loader(stream_shards)
    second.load_state_dict(state)
    assert all(same(left, right) for left, right in zip(straight[2:], take(second, 3), strict=True))


@h264
def test_a_bad_group_is_a_bad_sample_where_a_clip_needs_it_and_else_unnoticed(
    stream_shards: ShardSet, tmp_path: Path
) -> None:
    before = take(loader(stream_shards), 3)
    bad, unharmed = int(before[1].sample[2]), int(before[2].sample[0])
    begin = damage_unit(stream_shards, bad, two_units(stream_shards, bad, epoch=0)[0])
    damage_unit(stream_shards, unharmed, two_units(stream_shards, unharmed, epoch=0)[1])
    log = tmp_path / "bad_samples.jsonl"
    with loader(stream_shards, bad_log=log) as source:
        after = [next(source) for _ in range(3)]
    assert same(after[0], before[0]) and same(after[2], before[2])
    kept = [0, 1, 3]
    assert torch.equal(after[1].pixels[kept], before[1].pixels[kept]) and int(after[1].sample[2]) != bad
    lines = [json.loads(text) for text in log.read_text().splitlines()]
    (line,) = [line for line in lines if line["epoch"] == 0]
    assert (line["sample"], line["key"], line["offset"], line["position"]) == (bad, f"v{bad}", begin, 4)
    assert "checksum" in line["reason"]


@h264
def test_several_bad_samples_of_a_batch_are_replaced_in_their_places(stream_shards: ShardSet) -> None:
    with loader(stream_shards) as source:
        batch = source.samples(Position(epoch=0, position=0)).tolist()
    for slot in (0, 2):
        damage_unit(stream_shards, batch[slot], 0)  # the header, which every clip needs
    (views,) = take(loader(stream_shards, augment=PLAIN, max_bad=1.0), 1)
    assert views.sample[[1, 3]].tolist() == [batch[1], batch[3]]
    assert not {batch[0], batch[2]} & set(views.sample.tolist())
    shows_its_plan(views, stream_shards, CLIPS)


def test_evaluation_sees_every_stream_once_and_leaves_bad_ones_out(stream_shards: ShardSet) -> None:
    options = {"clips": CLIPS, "augment": PLAIN, "data": DataConfig(), "batch_size": 4, "views": 2}
    with EvalLoader(stream_shards, **options) as source:
        assert [sample for views in source for sample in views.sample.tolist()] == list(range(13))
    begin = damage_unit(stream_shards, 6, 0)
    with EvalLoader(stream_shards, **options) as source:
        seen = [sample for views in source for sample in views.sample.tolist()]
    assert seen == [sample for sample in range(13) if sample != 6]
    assert [(error.key, error.offset) for error in source.bad] == [("v6", begin)]


def test_a_mixture_of_pictures_and_streams_resumes_on_two_ranks_in_the_middle_of_an_epoch(
    shards: ShardSet, stream_shards: ShardSet
) -> None:
    def mixed(**options: object) -> TrainLoader:
        return loader(Mixture([shards, stream_shards], [3, 1]), block_shards=2, max_bad=1.0, **options)

    flip_byte_of(shards, 4)
    straight = take(mixed(), 12)
    first = mixed()
    for _ in range(7):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    parts = []
    for rank in range(2):
        part = mixed(rank=rank, world_size=2)
        part.load_state_dict(state)
        parts.append(take(part, 5))
    for views, left, right in zip(straight[7:], *parts, strict=True):
        assert torch.equal(views.sample, torch.cat([left.sample, right.sample]))
        assert torch.equal(views.pixels, torch.cat([left.pixels, right.pixels]))
    every = torch.cat([views.sample for views in straight])
    assert (every < 13).sum() == 36 and 4 not in every
    assert straight[0].label.tolist() == [sample % 13 % 3 for sample in straight[0].sample.tolist()]
    with loader(Mixture([shards, stream_shards], [1, 1])) as other, pytest.raises(ResumeError, match="digest was"):
        other.load_state_dict(state)


def test_one_set_mixes_codecs_in_every_batch(
    shards: ShardSet, members: list[bytes], stream_members: Callable[[str], list[bytes]], tmp_path: Path
) -> None:
    names = [("jpeg", "h264", "copy")[video % 3] for video in range(len(members))]
    stored = [members[video] if name == "jpeg" else stream_members(name)[video] for video, name in enumerate(names)]
    codecs = [JpegCodec(quality=2) if name == "jpeg" else STREAMS[name] for name in names]
    mixed = write_shards(tmp_path / "mixed", stored, labels=[video % 3 for video in range(13)], codec=codecs)
    assert [mixed.row(sample).codec for sample in range(4)] == [0, 1, 2, 0]
    plain, several = (take(loader(given, augment=PLAIN), 3) for given in (shards, mixed))
    for pictures, views in zip(plain, several, strict=True):
        assert torch.equal(pictures.sample, views.sample) and torch.equal(pictures.label, views.label)
        shows_its_plan(views, mixed, CLIPS)
        assert torch.equal(pictures.pixels[views.sample % 3 == 0], views.pixels[views.sample % 3 == 0])
    straight = torch.cat([views.pixels for views in several])
    parts = [take(loader(mixed, augment=PLAIN, rank=rank, world_size=2), 3) for rank in range(2)]
    halves = [torch.cat([left.pixels, right.pixels]) for left, right in zip(*parts, strict=True)]
    assert torch.equal(straight, torch.cat(halves))
