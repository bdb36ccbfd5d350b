"""The walk over folders: links once, nothing lost without a word, hidden things passed over and counted."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path

import pytest

from rhofast.errors import IngestError
from rhofast.ingest.listing import Listing, PassedOverCount
from rhofast.ingest.recipes import find_classes, find_records

RECIPES = ("folder", "uncurated")


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def link(path: Path, target: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def walked(source: Path, recipe: str, *options: str) -> tuple[list[str], Counter[str]]:
    """Paths relative to the source, with the class in front where there is one, and what was passed over."""
    count = PassedOverCount()
    records = list(find_records(source, recipe, options, on_passed_over=count.add))
    assert len({record.key for record in records}) == len(records)
    if recipe == "folder":
        assert all(record.label_name in (None, record.path.relative_to(source).parts[0]) for record in records)
    return [record.path.relative_to(source).as_posix() for record in records], count.counts


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_linked_folder_is_followed(tmp_path: Path, recipe: str) -> None:
    tree(tmp_path, "disk/part/x.mp4", "disk/part/deep/y.mp4", "disk/jump/j.mp4", "set/run/a.mp4", "set/walk/b.mp4")
    link(tmp_path / "set/run/part", tmp_path / "disk/part")
    link(tmp_path / "set/jump", "../disk/jump")
    names, passed = walked(tmp_path / "set", recipe)
    assert names == ["jump/j.mp4", "run/a.mp4", "run/part/deep/y.mp4", "run/part/x.mp4", "walk/b.mp4"]
    assert not passed


@pytest.mark.parametrize("recipe", RECIPES)
def test_circles_of_links_end(tmp_path: Path, recipe: str) -> None:
    tree(tmp_path, "disk/x.mp4", "set/run/a.mp4")
    link(tmp_path / "set/run/self", tmp_path / "set/run")
    link(tmp_path / "set/run/root", tmp_path / "set")
    link(tmp_path / "set/run/above", tmp_path)
    link(tmp_path / "set/run/disk", tmp_path / "disk")
    link(tmp_path / "set/run/disk_again", tmp_path / "disk")
    link(tmp_path / "disk/self", tmp_path / "disk")
    link(tmp_path / "disk/set", tmp_path / "set")
    link(tmp_path / "set/back", tmp_path / "set/run")
    names, passed = walked(tmp_path / "set", recipe)
    assert names == ["run/a.mp4", "run/disk/x.mp4"]
    assert passed == {"folders listed elsewhere": 7}


def test_a_second_name_of_a_class_is_no_class(tmp_path: Path) -> None:
    tree(tmp_path, "b_run/a.mp4", "c_walk/b.mp4")
    link(tmp_path / "a_alias", "b_run")
    assert walked(tmp_path, "folder")[0] == ["b_run/a.mp4", "c_walk/b.mp4"]
    assert find_classes(tmp_path, "folder", []) == ["b_run", "c_walk"]


def test_a_link_into_a_hidden_folder_is_followed(tmp_path: Path) -> None:
    tree(tmp_path, ".store/abc/a.mp4", "walk/b.mp4")
    link(tmp_path / "run", ".store/abc")
    assert walked(tmp_path, "folder") == (["run/a.mp4", "walk/b.mp4"], Counter({"hidden": 1}))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_link_to_nothing_is_listed(tmp_path: Path, recipe: str) -> None:
    tree(tmp_path, "run/a.mp4", "walk/b.mp4")
    link(tmp_path / "jump/lost.mp4", "/nowhere/blob")
    link(tmp_path / "swim", "/unmounted/swim")
    link(tmp_path / "run/part", "part")  # a link to itself
    link(tmp_path / "run/notes.txt", "/nowhere/notes")
    names, passed = walked(tmp_path, recipe)
    assert names == ["jump/lost.mp4", "run/a.mp4", "run/part", "swim", "walk/b.mp4"]
    assert passed == {"other files (.txt)": 1}
    if recipe == "folder":
        assert find_classes(tmp_path, recipe, []) == ["jump", "run", "swim", "walk"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_hidden_things_and_those_of_the_system_are_passed_over(tmp_path: Path, recipe: str) -> None:
    hidden = [".ipynb_checkpoints/a.mp4", ".Trash-1000/files/t.mp4", "._a.mp4", "@eaDir/a.mp4/x.mp4", "#recycle/b.mp4"]
    top = [*hidden, "lost+found/x.mp4", "__MACOSX/run/._a.mp4"]
    tree(tmp_path, "run/a.mp4", *top, *(f"run/{name}" for name in hidden))
    names, passed = walked(tmp_path, recipe)
    assert names == ["run/a.mp4"]
    assert passed == {"hidden": 2 * len(hidden) + 2}


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_passed_over_is_counted_with_its_suffix(tmp_path: Path, recipe: str) -> None:
    tree(tmp_path, "run/a.mp4", "run/a.srt", "run/b.SRT", "run/README", "notes/x.pdf", "empty/.keep")
    os.mkfifo(tmp_path / "run/pipe.mp4")
    names, passed = walked(tmp_path, recipe)
    assert names == ["run/a.mp4"]
    expected = {"other files (.srt)": 2, "other files (no suffix)": 1, "other files (.pdf)": 1, "hidden": 1}
    more = {"folders without videos": 2} if recipe == "folder" else {}
    assert passed == {**expected, **more, "devices, pipes or sockets": 1}


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_empty_source_says_what_was_passed_over(tmp_path: Path, recipe: str) -> None:
    count = PassedOverCount()
    records = find_records(tree(tmp_path, "a.webp", ".b.mp4"), recipe, [], on_passed_over=count.add)
    assert find_classes(tmp_path, recipe, []) == []
    with pytest.raises(IngestError, match=r"no videos; passed over: 1 hidden, 1 other files \(.webp\)"):
        Listing(records, passed_over=count)


def test_a_folder_of_archives_names_the_recipe(tmp_path: Path) -> None:
    count = PassedOverCount()
    records = find_records(tree(tmp_path, "a.tar", "b.tar"), None, [], on_passed_over=count.add)
    with pytest.raises(IngestError, match=r"2 other files \(.tar\) .*--recipe webdataset_tars"):
        Listing(records, passed_over=count)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("right", ["read", "enter"])
def test_a_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, recipe: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tree(tmp_path, "jump/in/j.mp4", "run/a.mp4")
    locked = str(source / "jump" / "in")
    real_scandir, real_access = os.scandir, os.access

    def scandir(path: Path) -> object:
        if str(path) == locked and right == "read":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), locked)
        return real_scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may read everything, so modes would not do
    monkeypatch.setattr(
        os, "access", lambda path, mode: real_access(path, mode) and (str(path) != locked or right != "enter")
    )
    with pytest.raises(IngestError, match="jump/in: Permission denied"):
        list(find_records(source, recipe, []))


def test_suffixes_of_all_containers_are_known(tmp_path: Path) -> None:
    suffixes = (
        "mp4 m4v mov qt avi divx mkv webm ogv ogm ts mts m2ts m2t mpg mpeg mpe m2v vob 3gp 3g2 asf wmv rm rmvb flv "
        "f4v mxf gxf nut y4m ivf dv gif TS Mp4"
    )
    names = sorted(f"a.{suffix}" for suffix in suffixes.split())
    assert walked(tree(tmp_path, *names, "a.txt", "mp4"), "uncurated")[0] == names


def test_a_tree_may_be_deep(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(1200):
        folder = folder / "d"
        folder.mkdir()
    (folder / "x.mp4").touch()
    assert len(walked(tmp_path, "uncurated")[0]) == 1
    (folder / "x.mp4").unlink()
    for each in (folder, *folder.parents[:1199]):  # pytest deletes folders by recursion, which such a tree exceeds
        each.rmdir()
