"""Training and evaluating on a part of a set: the same batches for any ranks, exact on resume, each visit its own."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import rhofast
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sources import open_shards
from rhofast.data.types import Position, Views
from rhofast.errors import ConfigError, ResumeError
from tests.helpers.shards import damage_unit, write_shards

SMALL = {"num_frames": 3, "frame_stride": 2, "fps": 12, "size": 16, "device": "cpu"}
KEPT = [0, 2, 3, 4, 6, 9, 10, 12]  # of three shards of 5, 5 and 3 samples
EQUAL = "".join(f"v{number}\n" for number in reversed(KEPT))
WEIGHTED = "key,weight\n" + "".join(
    f"v{number},{weight}\n" for number, weight in zip(KEPT, [3, 1, 1, 1, 0.5, 0.5, 0.5, 0.5], strict=True)
)
LISTS = {"k.txt": EQUAL, "k.csv": WEIGHTED}


@pytest.fixture(params=list(LISTS))
def keep(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    path.write_text(LISTS[request.param])
    return path


def opened(shards: ShardSet, keep: Path, rank: int = 0, ranks: int = 1, **options: object) -> TrainLoader:
    return rhofast.clips(
        shards.root,
        keep=keep,
        batch_size=4,
        seed=11,
        rank=rank,
        world_size=ranks,
        options=options,
        **SMALL,  # type: ignore[arg-type]
    )


def take(loader: TrainLoader, count: int) -> list[Views]:
    with loader:
        return [next(loader) for _ in range(count)]


def keys_of(loader: TrainLoader, views: Views) -> list[str]:
    return [loader.shards.row(sample).key for sample in views.sample.tolist()]


def test_an_epoch_has_every_listed_sample_and_no_other(shards: ShardSet, keep: Path) -> None:
    with opened(shards, keep) as loader:
        assert len(loader.shards) == 8 and loader.steps_per_epoch == 2
        for _ in range(3):
            seen = Counter(key for _ in range(2) for key in keys_of(loader, next(loader)))
            if keep.suffix == ".txt":
                assert seen == {f"v{number}": 1 for number in KEPT}
            else:  # the mean weight is 1
                assert seen.total() == 8 and all(seen[f"v{number}"] <= 1 for number in KEPT[4:])
                assert [seen[f"v{number}"] for number in KEPT[:4]] == [3, 1, 1, 1]


def test_labels_and_pixels_belong_to_the_keys(shards: ShardSet, keep: Path) -> None:
    with rhofast.clips(shards.root, keep=keep, batch_size=8, augment="none", **SMALL) as loader:  # type: ignore[arg-type]
        views = next(loader)
        videos = [int(key.removeprefix("v")) for key in keys_of(loader, views)]
        assert views.label.tolist() == [video % 3 for video in videos]
        config = torch.tensor([0.45]), torch.tensor([0.225])
        green = ((views.pixels[:, :, 1] * config[1] + config[0]) * 255 / 8).mean(dim=(1, 2, 3, 4))
        assert green.round().int().tolist() == videos


def test_each_visit_of_an_epoch_is_of_other_clips(shards: ShardSet, tmp_path: Path) -> None:
    keep = tmp_path / "k.csv"
    keep.write_text(WEIGHTED)
    whole = torch.cat([views.pixels for views in take(opened(shards, keep), 2)])
    with opened(shards, keep) as loader:
        samples = np.concatenate([loader.samples(Position(epoch=0, position=at)) for at in (0, 4)])
    visits = whole[torch.from_numpy(samples == 0)]  # v0, three times
    assert len(visits) == 3
    assert not any(torch.equal(visits[i], visits[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("options", [{}, {"data.block_shards": 1, "data.lanes": 2, "data.fixed_lanes": True}])
def test_any_number_of_ranks_gets_the_same_batches_also_after_a_resume(
    shards: ShardSet, keep: Path, options: dict[str, object]
) -> None:
    straight = take(opened(shards, keep, **options), 5)
    with opened(shards, keep, **options) as first:
        next(first), next(first), next(first)  # into the second epoch
        state = first.state_dict()
    assert state["epoch"] == 1 and "8 of 13 samples" in state["keep"]
    for ranks in (1, 2, 4):
        parts = []
        for rank in range(ranks):
            loader = opened(shards, keep, rank, ranks, **options)
            loader.load_state_dict(state)
            parts.append(take(loader, 2))
        for views, *of_ranks in zip(straight[3:], *parts, strict=True):
            assert torch.equal(views.pixels, torch.cat([one.pixels for one in of_ranks]))
            assert torch.equal(views.sample, torch.cat([one.sample for one in of_ranks]))


def test_another_list_is_refused_in_one_line(shards: ShardSet, keep: Path) -> None:
    with opened(shards, keep) as loader:
        state = loader.state_dict()
    keep.write_text(keep.read_text().replace("v12", "v11"))
    with opened(shards, keep) as loader, pytest.raises(ResumeError) as caught:
        loader.load_state_dict(state)
    expected = "the data does not fit the checkpoint: keep was '8 of 13 samples ("
    assert str(caught.value).startswith(expected) and str(caught.value).count("8 of 13 samples") == 2
    assert "digest" not in str(caught.value) and "\n" not in str(caught.value)
    whole = rhofast.clips(shards.root, batch_size=4, seed=11, **SMALL)  # type: ignore[arg-type]
    with whole, pytest.raises(ResumeError, match=r"keep was '8 of 13 .* is None .name the list"):
        whole.load_state_dict(state)


def test_a_bad_sample_is_replaced_by_a_listed_one(shards: ShardSet, tmp_path: Path) -> None:
    keep = tmp_path / "k.csv"
    keep.write_text(WEIGHTED)
    for unit in range(24):
        damage_unit(shards, 0, unit)  # v0, which has three visits
    options = {"data.max_bad": 1.0}
    one = take(opened(shards, keep, **options), 2)
    two = [take(opened(shards, keep, rank, 2, **options), 2) for rank in range(2)]
    assert 0 not in torch.cat([views.sample for views in one]).tolist()
    for views, left, right in zip(one, *two, strict=True):
        assert torch.equal(views.pixels, torch.cat([left.pixels, right.pixels]))


def test_sets_of_a_mixture_have_lists_of_their_own(shards: ShardSet, tmp_path: Path, members: list[bytes]) -> None:
    other = write_shards(tmp_path / "other", members[:6])
    lists = [tmp_path / "a.txt", tmp_path / "b.txt"]
    lists[0].write_text("v1\nv8\n")
    lists[1].write_text("v5\n")
    names = [str(shards.root), str(other.root)]
    by_name = dict(zip(names, lists, strict=True))
    with rhofast.clips({names[0]: 3.0, names[1]: 1.0}, keep=by_name, batch_size=2, **SMALL) as loader:  # type: ignore[arg-type]
        assert loader.shards.parts is not None and loader.shards.parts.startswith("2 of 13 samples (")
        seen = Counter(
            (loader.shards.locate(sample)[0], loader.shards.row(sample).key)
            for _ in range(4)
            for sample in next(loader).sample.tolist()
        )
    assert seen == {(0, "v1"): 3, (0, "v8"): 3, (1, "v5"): 2}
    with rhofast.clips(names, keep={names[1]: lists[1]}, batch_size=2, **SMALL) as loader:  # type: ignore[arg-type]
        assert len(loader.shards) == 14 and "13 of 13 samples, 1 of 6 samples (" in str(loader.shards.parts)
    with pytest.raises(ConfigError, match=r"there are 2 sets .name the set"):
        rhofast.clips(names, keep=lists[0], batch_size=2, **SMALL)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="keep: 'x' is none of the sets"):
        rhofast.clips(names, keep={"x": lists[0]}, batch_size=2, **SMALL)  # type: ignore[arg-type]


def test_a_set_that_is_open_keeps_what_it_was_opened_with(shards: ShardSet, keep: Path) -> None:
    part = open_shards(shards.root, keep=keep)
    by_path = take(opened(shards, keep), 2)
    ready = rhofast.clips(part, batch_size=4, seed=11, **SMALL)  # type: ignore[arg-type]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(by_path, take(ready, 2), strict=True))
    for take_open in (rhofast.clips, rhofast.eval_clips):
        with pytest.raises(ConfigError, match=r"the set is open already .pass keep to open_shards"):
            take_open(part, keep=keep, num_frames=3)  # type: ignore[operator]


def test_a_batch_larger_than_the_list_is_refused(shards: ShardSet, keep: Path) -> None:
    with pytest.raises(ConfigError, match="batch of 9 does not fit into 8 samples"):
        rhofast.clips(shards.root, keep=keep, batch_size=9, **SMALL)  # type: ignore[arg-type]


def test_evaluation_takes_each_listed_sample_once(shards: ShardSet, keep: Path) -> None:
    parts = []
    for rank in range(2):
        with rhofast.eval_clips(
            shards.root,
            keep=keep,
            batch_size=3,
            rank=rank,
            world_size=2,
            fields=["label"],
            **SMALL,  # type: ignore[arg-type]
        ) as loader:
            parts += [(views.sample.tolist(), views.label.tolist()) for views in loader]
    assert [sample for samples, _ in parts for sample in samples] == list(range(8))
    assert [label for _, labels in parts for label in labels] == [number % 3 for number in KEPT]


def test_a_dataset_of_listed_samples_works_in_other_processes(shards: ShardSet, keep: Path) -> None:
    dataset = rhofast.ClipDataset(shards.root, keep=keep)
    assert len(dataset) == 8 and [dataset.row(sample).key for sample in range(8)] == [f"v{number}" for number in KEPT]
    keep.unlink()  # the list is read once
    workers = DataLoader(dataset, batch_size=None, sampler=[(5, [0]), (-1, [0])], num_workers=1)
    greens = [int((frames.double().mean(dim=(0, 1, 2))[1] / 8).round()) for frames in workers]
    assert greens == [9, 12]
