"""Opening a shard set, and what is said when something is wrong with it."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rhofast.data.codecs import build_codec
from rhofast.data.format import index_file
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.format.index import IndexRow, pack_colors, unpack_colors
from rhofast.data.format.index_rows import IndexFacts
from rhofast.data.format.index_writer import write_index
from rhofast.data.types import Units
from rhofast.data.units import colors_of, measured_frames
from rhofast.errors import ShardFormatError, ShardMissingError
from tests.fuzz.hostile_shards import copy_of


def test_samples_are_found_across_shards(shards: ShardSet) -> None:
    assert [shards.locate(sample) for sample in (0, 4, 5, 12)] == [(0, 0), (0, 4), (1, 0), (2, 2)]
    assert [shards.row(sample).key for sample in range(13)] == [f"v{sample}" for sample in range(13)]
    with pytest.raises(IndexError):
        shards.locate(13)


def test_a_row_tells_what_was_stored(shards: ShardSet, members: list[bytes]) -> None:
    row = shards.row(7)
    assert (row.label, row.num_frames, row.fps, row.width, row.height) == (1, 24, 12.0, 64, 48)
    content = (shards.root / "shard-000001.tar").read_bytes()[row.offset : row.offset + row.size]
    assert content == members[7]
    assert row.units.offset.tolist() == np.cumsum([row.units.offset[0], *row.units.size[:-1]]).tolist()
    assert row.units.frame.tolist() == list(range(24)) and row.units.rgb.shape == (3, 3)  # of frames 0, 16 and 23
    color = colors_of(row.units, 24, np.array([10], dtype=np.int32))[0]
    assert abs(color[0] - 80) < 3 and abs(color[1] - 56) < 3


@pytest.mark.parametrize("codec", ["jpeg", "h264", "copy"])
def test_units_are_read_back_as_the_codec_found_them(codec: str, tmp_path: Path) -> None:
    shards = open_folder(copy_of(codec, tmp_path))
    row = shards.row(1)
    content = (shards.root / shards.info.shards[0].tar).read_bytes()[row.offset : row.offset + row.size]
    found = build_codec(shards.info.codecs[0]).index_member(io.BytesIO(content)).units
    for name in ("frame", "offset", "size", "crc"):
        read, made = getattr(row.units, name), getattr(found, name)
        assert read.dtype == made.dtype and read.tolist() == made.tolist(), name
    assert row.units.rgb.dtype == np.float32 and np.abs(row.units.rgb - found.rgb).max() <= 255 / 1023 / 2 + 1e-4


def test_colors_take_30_bits_and_lose_an_eighth() -> None:
    rgb = np.random.default_rng(0).uniform(0, 255, (1000, 3)).astype(np.float32)
    rgb[0], rgb[1] = 0, 255
    packed = pack_colors(rgb)
    assert packed.dtype == np.uint32 and packed.max() < 1 << 30 and packed[0] == 0
    again = unpack_colors(packed)
    assert np.abs(again - rgb).max() <= 255 / 1023 / 2 + 1e-4 and again[:2].tolist() == [[0] * 3, [255] * 3]
    assert pack_colors(again).tolist() == packed.tolist()


@pytest.mark.parametrize("num_frames", [1, 2, 3, 16, 17, 18, 33, 100])
def test_colors_are_linear_between_measured_frames(num_frames: int) -> None:
    numbers, measured = np.arange(num_frames, dtype=np.int32), measured_frames(num_frames)
    rgb = np.random.default_rng(num_frames).uniform(0, 255, (len(measured), 3)).astype(np.float32)
    units = replace(units_of(num_frames), rgb=rgb)
    expected = np.stack([np.interp(numbers, measured, color) for color in rgb.T], axis=1)
    assert np.allclose(colors_of(units, num_frames, numbers), expected, atol=1e-3)
    assert colors_of(units, num_frames, numbers.reshape(1, -1)).shape == (1, num_frames, 3)


@pytest.mark.parametrize(("group", "most"), [(1, 10), (12, 16)])
def test_a_picture_costs_10_bytes_and_a_group_16(group: int, most: int, tmp_path: Path) -> None:
    sizes = []
    for groups in (1000, 3000):
        units = units_of(groups * group, group=group)
        write_index(tmp_path / "x.arrow", [row_with(units, groups * group)], {})
        sizes.append((tmp_path / "x.arrow").stat().st_size)
    assert (sizes[1] - sizes[0]) / 2000 <= most + 0.1  # buffers are padded to 64 bytes


def test_units_with_bytes_between_them_cannot_be_written(tmp_path: Path) -> None:
    units = units_of(20)
    units.offset[5:] += 1
    with pytest.raises(ValueError, match="do not follow one another"):
        write_index(tmp_path / "x.arrow", [row_with(units, 20)], {})


def units_of(num_frames: int, *, group: int = 1) -> Units:
    first = np.arange(0, num_frames, group, dtype=np.int32)
    size = np.full(len(first), 7, dtype=np.int32)
    colors = len(measured_frames(num_frames)) if group == 1 else len(first)
    return Units(
        frame=first,
        offset=np.cumsum(size, dtype=np.int64) - size,
        size=size,
        crc=np.arange(len(first), dtype=np.uint32),
        rgb=np.zeros((colors, 3), dtype=np.float32),
    )


def row_with(units: Units, num_frames: int) -> IndexRow:
    size = int(units.size.sum())
    facts = {"label": None, "source_digest": bytes(16), "offset": 0, "size": size, "fps": 10.0}
    return IndexRow(key="k", **facts, num_frames=num_frames, width=64, height=48, units=units)  # type: ignore[arg-type]


def test_a_label_that_is_missing_is_none(tmp_path_factory: pytest.TempPathFactory, members: list[bytes]) -> None:
    from tests.helpers.shards import write_shards

    row = write_shards(tmp_path_factory.mktemp("plain") / "set", members[:2]).row(1)
    assert row.label is None


def test_the_digest_names_the_content(shards: ShardSet) -> None:
    info = shards.info
    other = info.model_copy(update={"shards": list(reversed(info.shards))})
    renamed = info.model_copy(update={"name": "x", "build": "y"})
    assert info.digest != other.digest and info.digest == renamed.digest


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"version": 1}, ShardFormatError, "format version 1, but this rhofast reads version 2"),
        ({"format": "other"}, ShardFormatError, "not the description of a rhofast shard set"),
        ({"shards": 3}, ShardFormatError, "shards=3: must be a list"),
    ],
)
def test_another_dataset_json_is_refused(shards: ShardSet, change: dict, error: type, said: str) -> None:
    path = shards.root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error, match=said):
        open_folder(shards.root)


def test_a_cut_dataset_json_is_refused(shards: ShardSet) -> None:
    path = shards.root / "dataset.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ShardFormatError, match="not JSON at column"):
        open_folder(shards.root)


def test_missing_and_cut_files_are_noticed_at_opening(shards: ShardSet) -> None:
    tar, index = shards.root / "shard-000001.tar", shards.root / "shard-000002.arrow"
    os.truncate(tar, 1000)
    with pytest.raises(ShardFormatError, match=r"shard-000001.tar: 1000 bytes, but dataset.json lists"):
        open_folder(shards.root)
    tar.unlink()
    with pytest.raises(ShardMissingError, match=r"shard-000001.tar: No such file"):
        open_folder(shards.root)
    assert len(open_folder(shards.root, check_files=False)) == 13
    index.write_bytes(index.read_bytes()[:-100])
    with pytest.raises(ShardMissingError, match=r"shard-000001.tar"):
        open_folder(shards.root)
    with pytest.raises(ShardFormatError, match=r"shard-000002.arrow: \d+ bytes, but dataset.json lists"):
        open_folder(shards.root, check_files=False).row(12)


def test_a_folder_without_a_set_says_what_it_is(shards: ShardSet) -> None:
    with pytest.raises(ShardMissingError, match="no such folder"):
        open_folder(shards.root / "nowhere")
    (shards.root / "dataset.json").unlink()
    with pytest.raises(ShardMissingError, match="run the same `rhofast shard` command again"):
        open_folder(shards.root)


def test_an_index_is_checked_once_unless_its_file_is_another(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def spy(path: Path, facts: IndexFacts) -> None:
        hashed.append(path.name)
        check(path, facts)

    check = index_file._check_file
    monkeypatch.setattr(index_file, "_check_file", spy)
    few = ShardSet(shards.root, shards.info, open_indices=1)
    for sample in (0, 5, 10, 0, 5, 10):  # each is let go before it is needed again
        assert few.row(sample).key == f"v{sample}"
    assert hashed == ["shard-000000.arrow", "shard-000001.arrow", "shard-000002.arrow"]
    path = shards.root / "shard-000000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardFormatError, match="digest"):
        few.row(0)
