"""`rhofast.ClipDataset`: the stored frames by number, in any process, without DALI."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import rhofast
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow
from rhofast.errors import ConfigError, SampleError, ShardFormatError, ShardMissingError
from tests.helpers.shards import FPS, HEIGHT, NUM_FRAMES, ROOT, WIDTH, damage_unit, frame_pixels, write_shards


def numbers_in(pixels: torch.Tensor) -> tuple[list[int], list[int]]:
    """Return the frame and the video that the pixels encode (see `frame_pixels`)."""
    means = pixels.double().mean(dim=(1, 2))
    return (means[:, 0] / 8).round().int().tolist(), (means[:, 1] / 8).round().int().tolist()


def with_label(pixels: torch.Tensor, row: IndexRow) -> dict[str, object]:
    return {"frames": pixels, "label": row.label, "key": row.key}


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([3, 20, 3, 0], [3, 20, 3, 0]),
        (slice(2, 12, 4), [2, 6, 10]),
        (slice(None, None, -8), [23, 15, 7]),
        (range(4), [0, 1, 2, 3]),
        (np.array([5, 1]), [5, 1]),
        (torch.tensor([9]), [9]),
        ([], []),
        (slice(30, 40), []),
    ],
)
def test_frames_come_by_number(shards: ShardSet, frames: object, expected: list[int]) -> None:
    pixels = rhofast.ClipDataset(shards.root)[np.int64(7), frames]  # type: ignore[index]
    assert pixels.dtype == torch.uint8 and pixels.is_contiguous()
    assert pixels.shape == (len(expected), HEIGHT, WIDTH, 3)
    assert numbers_in(pixels) == (expected, [7] * len(expected))


def test_frames_of_streams_are_those_that_were_encoded(stream_shards: ShardSet) -> None:
    dataset = rhofast.ClipDataset(str(stream_shards.root))
    pixels = dataset[12, [17, 4]]
    expected = np.stack([frame_pixels(12, frame) for frame in (17, 4)]).astype(int)
    assert np.abs(pixels.numpy().astype(int) - expected).max() <= 12  # chroma is halved, quality is high


def test_a_sample_alone_is_all_its_frames(shards: ShardSet) -> None:
    dataset = rhofast.ClipDataset(shards.root)
    assert len(dataset) == 13
    assert numbers_in(dataset[-1]) == (list(range(NUM_FRAMES)), [12] * NUM_FRAMES)
    assert (dataset.row(4).key, dataset.row(4).label, dataset.row(4).fps) == ("v4", 1, FPS)
    assert sum(1 for _ in dataset) == 13  # iteration ends


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (13, IndexError, r"sample 13 is not in \[0, 13\)"),
        (-14, IndexError, "sample -14"),
        ((0, [0, 24]), IndexError, r"frame 24 of sample 0 is not in \[0, 24\)"),
        ((0, [-1]), IndexError, "frame -1 of sample 0"),
        ((0, [10**30]), IndexError, "frame 10+ of sample 0"),
        ("0", TypeError, "a sample must be a whole number, got '0'"),
        (1.0, TypeError, "a sample must be a whole number, got 1.0"),
        ((True, [0]), TypeError, "got True"),
        ((0, [0.5]), TypeError, "a frame must be a whole number, got 0.5"),
        ((0, 3), TypeError, "frames must be a slice or several numbers, got 3"),
        ((0, "12"), TypeError, "frames must be a slice"),
        ((0, [0], 1), TypeError, "a sample must be a whole number"),
    ],
)
def test_a_bad_index_is_one_line(shards: ShardSet, index: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rhofast.ClipDataset(shards.root)[index]  # type: ignore[index]


def test_bad_arguments_are_one_line(shards: ShardSet, tmp_path: Path) -> None:
    for given in (None, 3, "", b"x", shards):
        with pytest.raises(ConfigError, match="must be the folder or the address"):
            rhofast.ClipDataset(given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="transform=3"):
        rhofast.ClipDataset(shards.root, transform=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="data: cache='s3://a/b': must be a path"):
        rhofast.ClipDataset(shards.root, cache="s3://a/b")
    with pytest.raises(ShardMissingError, match="no such folder"):
        rhofast.ClipDataset(tmp_path / "none")


def test_damage_is_named_and_harms_no_other_frame(shards: ShardSet) -> None:
    damage_unit(shards, 3, 5)
    dataset = rhofast.ClipDataset(shards.root)
    assert len(dataset[3, [4, 6]]) == 2
    with pytest.raises(SampleError, match=r"frame 5: checksum mismatch .*key 'v3'"):
        dataset[3, [5]]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_return_what_this_process_does(shards: ShardSet, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    monkeypatch.chdir(shards.root.parent)
    dataset = rhofast.ClipDataset(shards.root.name, transform=with_label)
    dataset[0]  # files are open when workers begin
    monkeypatch.chdir(ROOT)  # spawned workers import this module from here
    order = [(sample, range(0, NUM_FRAMES, 6)) for sample in (5, 0, 12, 7, 3, 9)]
    loader = DataLoader(dataset, batch_size=2, sampler=order, num_workers=2, multiprocessing_context=start)
    for number, batch in enumerate(loader):
        for place, index in enumerate(order[2 * number : 2 * number + 2]):
            expected = dataset[index]
            assert torch.equal(batch["frames"][place], expected["frames"])
            assert (int(batch["label"][place]), batch["key"][place]) == (expected["label"], expected["key"])


def test_it_pickles_and_closes(shards: ShardSet) -> None:
    dataset = rhofast.ClipDataset(shards.root)
    expected = dataset[2]
    again = pickle.loads(pickle.dumps(dataset))
    dataset.close()
    assert torch.equal(again[2], expected)
    assert torch.equal(dataset[2], expected)


def test_a_set_that_became_another_is_refused(shards: ShardSet, members: list[bytes]) -> None:
    content = pickle.dumps(rhofast.ClipDataset(shards.root))
    shards.root.rename(shards.root.with_name("old"))
    write_shards(shards.root, members[:6])
    with pytest.raises(ShardFormatError, match="the set is not the one that the dataset was made of"):
        pickle.loads(content)[0]


def test_it_needs_no_dali(shards: ShardSet) -> None:
    code = (
        "import sys; sys.modules['nvidia'] = None; import rhofast; "
        f"print(rhofast.ClipDataset({str(shards.root)!r})[1, [0]].shape, 'nvidia.dali' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == f"torch.Size([1, {HEIGHT}, {WIDTH}, 3]) False"


def test_a_dataset_names_its_folder_as_it_was_given_and_its_classes(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shards.root.parent)
    dataset = rhofast.ClipDataset(shards.root.name)
    assert repr(dataset) == f"ClipDataset('{shards.root.name}', 13 samples)"
    assert dataset.classes == tuple(shards.info.classes) and len(dataset.classes) == 3
