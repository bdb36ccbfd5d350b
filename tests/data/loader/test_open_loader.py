"""`rhofast.clips` and `rhofast.eval_clips`: the loaders of rhofast in one call, and one line for every bad argument."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, IterableDataset

import rhofast
from rhofast.config.schema import AugmentConfig, ClipConfig, Config, DataConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.types import Position, Views
from rhofast.errors import ConfigError
from rhofast.training.setup import build_accelerator, build_loader
from tests.helpers.shards import damage_unit, write_shards

SMALL = {"num_frames": 2, "frame_stride": 2, "size": 16, "batch_size": 4}
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def open_clips(shards: object, **arguments: object) -> TrainLoader:
    return rhofast.clips(shards, **{**SMALL, **arguments})  # type: ignore[arg-type]


def same(left: Views, right: Views) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_the_defaults_are_those_of_a_config() -> None:
    code = rhofast.clips.__kwdefaults__
    assert code is not None
    assert {name: code[name] for name in ("num_clips", "num_frames", "frame_stride", "fps")} == ClipConfig().model_dump(
        include={"num_clips", "num_frames", "frame_stride", "fps"}
    )
    assert code["size"] == AugmentConfig().size
    assert code["seed"] == Config(name="any").seed


def test_batches_are_those_of_training_bit_for_bit(shards: ShardSet, tmp_path: Path) -> None:
    config = rhofast.load_config(
        None,
        [
            *("clips.num_frames=2", "clips.frame_stride=2", "clips.fps=12", "clips.short=loop", "augment.size=16"),
            *("train.batch_size=4", "train.steps=1", "seed=7", f"out={tmp_path}"),
        ],
    )
    with (
        build_loader(config, build_accelerator(config), shards, None) as expected,
        open_clips(shards.root, fps=12.0, seed=7, options={"clips.short": "loop", "data.threads": 1}) as loader,
    ):
        for _ in range(loader.steps_per_epoch + 1):
            assert same(next(loader), next(expected))


def test_a_loop_is_over_an_epoch_and_continues_where_a_state_was_taken(shards: ShardSet) -> None:
    with open_clips(shards) as loader:
        first = list(loader)
        assert len(first) == len(loader) == loader.steps_per_epoch == len(shards) // 4
        assert loader.position == Position(epoch=1, position=0)
        assert not same(next(iter(loader)), first[0])
        assert (loader.steps_left, len(loader)) == (2, 3)
        state = loader.state_dict()
        rest = list(loader)
        assert len(rest) == 2
        third = next(loader)
        loader.load_state_dict(state)  # also after batches were taken
        assert all(same(left, right) for left, right in zip(loader, rest, strict=True))
    with open_clips(shards) as resumed:
        resumed.load_state_dict(state)
        assert all(same(left, right) for left, right in zip(resumed, rest, strict=True))
        assert same(next(resumed), third)


def test_an_epoch_that_was_begun_with_other_batches_ends_with_it(shards: ShardSet) -> None:
    with open_clips(shards, batch_size=3) as loader:
        next(loader)
        state = loader.state_dict()
    with open_clips(shards, batch_size=4) as resumed:
        resumed.load_state_dict(state)
        assert [len(views.sample) for views in resumed] == [4, 4]  # of the 10 that are left
        assert resumed.position == Position(epoch=1, position=0)


def test_a_closed_loader_says_so(shards: ShardSet) -> None:
    with open_clips(shards) as loader:
        next(loader)
    with open_clips(shards) as unused, rhofast.eval_clips(shards, size=16) as evaluated:
        next(evaluated)
    for use in (
        lambda: list(loader),
        lambda: next(unused),
        lambda: list(evaluated),
        lambda: loader.load_state_dict(loader.state_dict()),
    ):
        with pytest.raises(ValueError, match="the loader is closed"):
            use()


def test_a_dataloader_around_it_gives_the_same_batches_and_takes_no_workers(shards: ShardSet) -> None:
    with open_clips(shards) as loader:
        expected = list(loader)
    with open_clips(shards) as loader:
        assert isinstance(loader, IterableDataset)
        around = DataLoader(loader, batch_size=None)
        assert len(around) == 3
        assert all(same(left, right) for left, right in zip(around, expected, strict=True))
        workers = DataLoader(loader, batch_size=None, num_workers=1, multiprocessing_context="fork")
        with pytest.raises(ConfigError, match=r"num_workers=1: .* .pass num_workers=0 to the DataLoader"):
            next(iter(workers))
        with pytest.raises(TypeError, match=r"cannot be .* sent to another process.*num_workers=0"):
            pickle.dumps(loader)


@pytest.mark.parametrize(("augment", "clips"), [("ssl", 2), ("supervised", 1), ("none", 1)])
def test_one_clip_is_doubled_only_for_pretraining(shards: ShardSet, augment: str, clips: int) -> None:
    with open_clips(shards, num_clips=1, augment=augment) as loader:
        assert next(loader).pixels.shape == (4, clips, 3, 2, 16, 16)


def test_without_augmentation_clips_are_central_squares(shards: ShardSet) -> None:
    plain = {"augment.mean": (0.0, 0.0, 0.0), "augment.std": (1.0, 1.0, 1.0)}
    with open_clips(shards, size=48, augment="none", options=plain, batch_size=13) as loader:
        views = next(loader)
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)[8:56] / 255  # blue; the middle 48 of 64 columns
    blue = views.pixels[:, :, 2].mean(dim=(0, 1, 2, 3))
    assert np.abs(blue.numpy() - ramp).max() < 0.02
    green = views.pixels[:, :, 1].mean(dim=(1, 2, 3, 4)) * 255
    assert (green - 8 * views.sample).abs().max() < 4


def test_supervised_crops_have_the_scales_of_the_literature_at_any_size(shards: ShardSet) -> None:
    given = AugmentConfig(size=112, crop="short_side", short_side=(128, 160), color=0.0, gray=0.0, blur=0.0)
    clips = ClipConfig(num_frames=2, frame_stride=2, num_clips=1)
    with (
        open_clips(shards, size=112, augment="supervised", num_clips=1) as loader,
        TrainLoader(
            shards,
            clips=clips,
            augment=given,
            data=DataConfig(),
            batch_size=4,
            seed=0,
            duplicate_single_clip=False,
        ) as expected,
    ):
        assert same(next(loader), next(expected))


def test_several_sets_and_sets_that_are_open(shards: ShardSet, members: list[bytes], tmp_path: Path) -> None:
    other = write_shards(tmp_path / "other", members[:5], labels=[0] * 5)
    several = Mixture([shards, other], [3.0, 1.0])
    weighted = {str(shards.root): 3.0, str(other.root): 1}
    for given, expected in ((weighted, several), ([shards.root, str(other.root)], Mixture([shards, other]))):
        with open_clips(given) as loader, open_clips(expected) as same_loader:
            assert len(loader.shards) == len(shards) + len(other)
            assert same(next(loader), next(same_loader))


def test_ranks_are_found_out(shards: ShardSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with open_clips(shards) as loader:
        whole = next(loader).sample
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with open_clips(shards) as loader, rhofast.eval_clips(shards, size=16) as evaluated:
        assert torch.equal(next(loader).sample, whole[2:])
        assert [number for views in evaluated for number in views.sample.tolist()] == list(range(6, 13))
    with open_clips(shards, rank=0, world_size=4) as loader:
        assert torch.equal(next(loader).sample, whole[:1])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with open_clips(shards) as loader:
            assert torch.equal(next(loader).sample, whole)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK=2, WORLD_SIZE=2: RANK must be in \[0, WORLD_SIZE\)"),
        ({"RANK": "1"}, r"RANK=1, WORLD_SIZE=\(not set\)"),
        ({"WORLD_SIZE": "2"}, r"RANK=\(not set\), WORLD_SIZE=2"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK='one' must be a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE='0' must be a whole number of at least 1"),
        ({"LOCAL_WORLD_SIZE": "-3"}, "LOCAL_WORLD_SIZE='-3' must be"),
    ],
)
def test_a_launcher_that_contradicts_itself_is_refused(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        open_clips(shards.root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"augment": "strong"}, "augment='strong' must be one of 'ssl', 'supervised', 'none'"),
        ({"augment": ["ssl"]}, "augment=.'ssl'. must be one of"),
        ({"num_frames": 0}, "clips: num_frames=0: must be at least 1"),
        ({"num_frames": "8"}, "clips: num_frames='8'"),
        ({"fps": float("nan")}, "clips: fps=nan"),
        ({"size": "big", "augment": "supervised"}, "augment: size='big'"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number"),
        ({"batch_size": 4.0}, "batch_size=4.0 must be a whole number"),
        ({"batch_size": 14}, "a batch of 14 does not fit into 13 samples"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"rank": 1}, "world_size is missing"),
        ({"rank": 2, "world_size": 2}, r"rank=2 must be a whole number in \[0, 1\]"),
        ({"rank": 0, "world_size": 3}, "batch_size=4"),
        ({"device": "cude"}, "device='cude'"),
        ({"device": 1.5}, "device=1.5"),
        ({"device": "meta"}, "device='meta': there is no such device"),
        ({"device": "cuda:77"}, "device='cuda:77': there is no such device"),
        ({"device": "cpu", "dtype": torch.float16}, "dtype=torch.float16 must be torch.float32"),
        ({"fields": "label"}, "fields='label' must be a list"),
        ({"fields": ["caption"]}, "unknown field 'caption'; it must be one of .* or 'extra.NAME' .*inspect SHARDS"),
        ({"options": ["data.threads=1"]}, "must be a mapping"),
        ({"options": {"threads": 1}}, "options: unknown key 'threads'"),
        ({"options": {"data.thread": 1}}, "data: unknown key 'thread' .did you mean 'threads'"),
        ({"options": {"data.threads": 0}}, "data: threads=0"),
        ({"options": {"data.train": "x"}}, "options: 'data.train' is an argument of its own .pass shards="),
        ({"options": {"augment.size": 8}}, "options: 'augment.size' is an argument of its own .pass size="),
    ],
)
def test_a_bad_argument_is_one_line_that_names_it(shards: ShardSet, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        open_clips(shards.root, **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"batch_size": 14}, "take 13, the largest that fits: --set train.batch_size=13"),
        ({"batch_size": 64, "rank": 0, "world_size": 2}, "take 12, the largest that fits: --set train.batch_size=12"),
        ({"batch_size": 64, "rank": 0, "world_size": 3, "options": {"data.lanes": 2}}, "take 12, the largest"),
        ({"batch_size": 5, "rank": 0, "world_size": 4}, "take 4, the largest that fits"),
        ({"batch_size": 3, "rank": 0, "world_size": 4}, "take 4, the smallest that fits"),
        ({"batch_size": 64, "rank": 0, "world_size": 2, "options": {"augment.mixup": 0.8}}, "take 12, the largest"),
        ({"batch_size": 64, "rank": 0, "world_size": 14}, "a batch has at least 14 videos here: use more videos"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(
    shards: ShardSet, arguments: dict[str, Any], hint: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        open_clips(shards.root, **arguments)
    assert raised.value.hint is not None and raised.value.hint.startswith(hint)
    if "take" in hint:
        size = int(raised.value.hint.split("=")[-1])
        open_clips(shards.root, **{**arguments, "batch_size": size}).close()


@pytest.mark.parametrize("given", [None, 3, "", [], {}, [3], {"a": "x"}, {"a": 0.0}, ["a", "a"], b"shards"])
def test_what_is_no_shard_set_is_one_line(given: object) -> None:
    for opened in (open_clips, rhofast.eval_clips):
        with pytest.raises(ConfigError) as raised:
            opened(given)  # type: ignore[operator]
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"views": 0}, "views=0"),
        ({"crops": 2}, "crops=2 must be 1 or 3"),
        ({"batch_size": True}, "batch_size=True"),
        ({"samples": [0, 13]}, r"samples: 13 is not in \[0, 13\)"),
        ({"samples": [-1]}, "samples: -1"),
        ({"samples": [1, 1]}, "listed twice"),
        ({"samples": [0.5]}, "samples: must be a list of whole numbers"),
        ({"samples": [[1], [2, 3]]}, "samples: "),
        ({"samples": 3}, "samples: must be a list"),
        ({"options": {"clips.num_clips": 2}}, "is an argument of its own|no clips"),
    ],
)
def test_a_bad_argument_of_an_evaluation_is_one_line(
    shards: ShardSet, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        rhofast.eval_clips(shards, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_an_evaluation_has_a_length_and_takes_samples(shards: ShardSet) -> None:
    with rhofast.eval_clips(shards.root, samples=[7, 2, 11], batch_size=2, views=2, crops=3, size=16) as loader:
        assert len(loader) == 2
        batches = list(loader)
        again = list(loader)  # a loop is a pass: trainers validate in every epoch
        next(iter(loader))
        assert all(same(left, right) for left, right in zip(loader, batches, strict=True))
    assert [views.sample.tolist() for views in batches] == [[7, 2], [11]]
    assert len(again) == 2 and all(same(left, right) for left, right in zip(again, batches, strict=True))
    assert batches[0].pixels.shape == (2, 6, 3, 8, 16, 16)
    with rhofast.eval_clips(shards, samples=[]) as empty:
        assert list(empty) == []


def test_every_pass_of_an_evaluation_names_its_own_bad_samples(shards: ShardSet) -> None:
    damage_unit(shards, 3, 0)
    with rhofast.eval_clips(shards, num_frames=24, frame_stride=1, fps=12.0, size=16) as loader:
        for _ in range(2):
            assert sum(len(views.sample) for views in loader) == 12
            assert [error.key for error in loader.bad] == ["v3"]
            assert (loader.stats.bad, loader.stats.batches) == (1, 1)


def test_labels_on_request_need_a_set_with_labels(members: list[bytes], tmp_path: Path) -> None:
    unlabeled = write_shards(tmp_path / "unlabeled", members[:4])
    with open_clips(unlabeled) as loader:
        assert next(loader).label.tolist() == [-100] * 4
    for opened in (open_clips, rhofast.eval_clips):
        with pytest.raises(ConfigError, match=r"'label' is not in .*unlabeled: its videos have no labels"):
            opened(unlabeled, fields=["label"])  # type: ignore[operator]


def test_views_are_a_dict_of_tensors_that_moves(shards: ShardSet) -> None:
    with open_clips(shards, fields=["label"]) as loader:
        views = next(loader)
    assert list(views) == list(views.keys()) == ["pixels", "sample", "label"]
    assert dict(views)["label"] is views.label
    assert (lambda **given: given["pixels"])(**views) is views.pixels
    assert "label" in views and "caption" not in views
    with pytest.raises(KeyError, match=r"'caption' is not in the batch, which has pixels, sample, label"):
        views["caption"]
    assert views.to("cpu") is views
    for moved in (views.to("meta"), send_to_device(views, torch.device("meta"), non_blocking=True)):
        assert isinstance(moved, Views)
        assert {tensor.device.type for tensor in dict(moved).values()} == {"meta"}
        assert moved.pixels.stride() == views.pixels.stride()


def test_what_a_user_holds_says_in_one_line_what_it_is(shards: ShardSet) -> None:
    held = f"ShardSet('{shards.root}', 13 samples in 3 shards)"
    with rhofast.clips(shards, num_frames=2, size=16, batch_size=4, device="cpu") as loader:
        assert repr(loader) == f"TrainLoader({held}, 3 batches of 4 per epoch, at epoch 0, sample 0)"
        next(loader)
        assert repr(loader).endswith("at epoch 0, sample 4)")
    with rhofast.eval_clips(shards, batch_size=4, device="cpu") as evaluation:
        assert repr(evaluation) == f"EvalLoader({held}, 4 batches)"
    assert repr(Mixture([shards, shards], [3.0, 1.0])) == f"Mixture(3 x {held}, 1 x {held})"
    row = shards.row(3)
    assert f"num_frames={row.num_frames}" in repr(row) and "units=Units(frame=int32[24], " in repr(row)
    assert len(repr(row)) < 400
