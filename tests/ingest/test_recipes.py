"""Recipes: what a folder means, options, and one clear error for what a source cannot mean."""

from pathlib import Path

import pytest

from rhofast.data.types import VideoRecord
from rhofast.errors import ConfigError, IngestError
from rhofast.ingest.recipes import find_records


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_classes_are_numbered_over_the_whole_tree_and_splits_share_no_video(tmp_path: Path) -> None:
    names = [f"{name}/sub/{number} é.mp4" for name in ("run", "-jump", "one") for number in range(5)][:11]
    source = tree(tmp_path, *names, "one/notes.txt", "empty/readme.md")
    every = {record.key: record for record in find_records(source, None, [])}
    train = list(find_records(source, None, ["split=train", "holdout=0.2"]))
    test = list(find_records(source, None, ["split=test", "holdout=0.2"]))
    assert len(every) == 11
    assert {record.key for record in train} | {record.key for record in test} == set(every)
    assert not {record.key for record in train} & {record.key for record in test}
    assert {record.label_name for record in test} == {"run", "-jump"}  # a class of one video keeps it for training
    assert all(record == every[record.key] for record in [*train, *test])
    assert {(record.label, record.label_name) for record in every.values()} == {(0, "-jump"), (1, "one"), (2, "run")}


def test_keys_are_short_plain_and_unique(tmp_path: Path) -> None:
    names = ["a/x.mp4", "b/x.mp4", "a/x .mp4", "a/é.mp4", "a/ü.mp4", f"a/{'y' * 200}.mp4", "a/x.avi"]
    keys = [record.key for record in find_records(tree(tmp_path, *names), None, [])]
    assert len(set(keys)) == len(names)
    assert all(len(key) <= 60 and key.isascii() and key.replace("_", "").replace("-", "").isalnum() for key in keys)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    assert [record.label for record in find_records(tree(tmp_path, "a.mp4", "b.webm"), None, [])] == [None, None]


@pytest.mark.parametrize(
    ("option", "says"), [("holdot=0.1", "holdout"), ("holdout=x", "holdout"), ("split=val", "split"), ("split", "=")]
)
def test_an_unknown_or_bad_option_is_named(tmp_path: Path, option: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        list(find_records(tree(tmp_path, "a.mp4"), None, [option]))


def test_an_unknown_recipe_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder"):
        find_records(tmp_path, "foldr", [])


def test_a_recipe_of_one_s_own_is_given_by_path(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe_of_a_user.py"
    recipe.write_text(
        "from pathlib import Path\nfrom rhofast.data.types import VideoRecord\n"
        "def records(source: Path, *, count: int = 1):\n"
        "    for i in range(count):\n        yield VideoRecord(key=f'k{i}', path=source)\n"
    )
    assert [record.key for record in find_records(tmp_path, str(recipe), ["count=2"])] == ["k0", "k1"]


@pytest.mark.parametrize("name", ["nowhere", "x.bin"])
def test_a_missing_or_strange_source_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.bin").touch()
    with pytest.raises(IngestError):
        list(find_records(tmp_path / name, None, []))


def test_a_recipe_may_give_the_fields_of_a_record_by_position() -> None:
    by_position = VideoRecord("k", Path("a.mp4"), 3, "run", 1.0, 2.5, [(4, None, 2.0)], {"city": "Bern"})
    assert by_position == VideoRecord(
        key="k",
        path=Path("a.mp4"),
        label=3,
        label_name="run",
        start=1.0,
        end=2.5,
        labels=[(4, None, 2.0)],
        extra={"city": "Bern"},
    )
