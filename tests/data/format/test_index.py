"""Opening a shard set, and what is said when something is wrong with it."""

import json
import os
from pathlib import Path

import pytest

from rhofast.data.format import index_file
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.format.index_rows import IndexFacts
from rhofast.errors import ShardFormatError, ShardMissingError


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
    assert row.units.rgb.shape == (24, 3)
    assert abs(row.units.rgb[10, 0] - 80) < 3 and abs(row.units.rgb[10, 1] - 56) < 3


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
        ({"version": 2}, ShardFormatError, "format version 2, but this rhofast reads version 1"),
        ({"format": "other"}, ShardFormatError, "not the description of a rhofast shard set"),
        ({"shards": 3}, ShardFormatError, "shards=3: input should be a valid array"),
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
    with pytest.raises(ShardFormatError, match="not JSON at line 1"):
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
