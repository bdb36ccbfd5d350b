"""Tars in WebDataset's form: the samples that WebDataset itself sees, read in place, and one error per mistake."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from rhofast.data.inside import ByteRange
from rhofast.data.types import PassedOver, VideoRecord
from rhofast.errors import IngestError, RhofastError
from rhofast.ingest.listing import Listing
from rhofast.ingest.recipes import _load as load_recipe
from rhofast.ingest.recipes import find_classes, find_records

Files = dict[str, bytes]


def pack(path: Path, files: Files, **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def listed(source: Path | str, *options: str, passed: Callable[[PassedOver], None] | None = None) -> list[VideoRecord]:
    records = find_records(Path(source), "webdataset_tars", options, on_passed_over=passed)
    with Listing(records, classes=find_classes(Path(source), "webdataset_tars", options)) as listing:
        return list(listing)


def content(record: VideoRecord) -> bytes:
    assert isinstance(record.inside, ByteRange)
    with record.path.open("rb") as file:
        file.seek(record.inside.offset)
        return file.read(record.inside.size)


LONG = "folder/" + "n" * 300
SAMPLES: Files = {
    "__meta__/info.json": b"{}",
    "000.mp4": b"first" * 300,
    "000.cls": b"1\n",
    "000.json": b'{"caption": "a", "boxes": [[1, 2.5]]}',
    "001.cls": b"0",
    "001.MP4": b"second",
    "001.npy": b"\x93NUMPY\xff",
    "README": b"of no sample",
    ".hidden.mp4": b"of no sample",
    f"{LONG}.webm": b"third",
    "dir.with.dots/x-y.left.mkv": b"fourth",
    "dir.with.dots/x-y.txt": b" words \n",
}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_those_of_webdataset(tmp_path: Path, form: int) -> None:
    tar = pack(tmp_path / "a.tar", SAMPLES, format=form)
    with tar.open("rb") as file:
        seen = list(group_by_keys(tar_file_expander([{"url": "a.tar", "stream": file}])))
    mine = listed(tar)
    assert len(mine) == len(seen) == 4
    for record, sample in zip(mine, seen, strict=True):
        assert record.inside is not None
        video = sample[record.inside.name.removeprefix(sample["__key__"])[1:].lower()]
        assert content(record) == video
        assert record.label == (int(sample["cls"]) if "cls" in sample else None)
    assert [record.extra for record in mine] == [
        {"caption": "a", "boxes": [[1, 2.5]]},
        None,
        None,
        {"txt": "words"},
    ]
    assert [record.key for record in mine][:2] == ["000", "001"]
    assert len({record.key for record in mine}) == 4 and all(record.path == tar for record in mine)


def test_tars_are_found_by_braces_patterns_folders_and_lists(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for number in range(12):
        pack(tmp_path / "sub" / f"t-{number:03d}.tar", {f"{number}.mp4": b"x"})
    (tmp_path / "list.txt").write_text(
        "# some\nsub/t-{000..003}.tar\n\nsub/t-01?.tar\n" + f"{tmp_path}/sub/t-005.tar\n"
    )

    def keys(source: str, recipe: str | None = None) -> list[int]:
        return [int(record.key) for record in find_records(tmp_path / source, recipe, [])]

    assert keys("sub/t-{000..011}.tar") == list(range(12))
    assert keys("sub/t-{005..001..2}.tar") == [5, 3, 1]
    assert keys("sub/t-{00{1,2},011}.tar") == [1, 2, 11]
    assert keys("sub/t-*.tar") == keys("sub", "webdataset_tars") == keys("", "webdataset_tars") == list(range(12))
    assert keys("list.txt", "webdataset_tars") == [0, 1, 2, 3, 10, 11, 5]
    for source, says in (
        ("sub/t-{010..012}.tar", "t-012.tar: No such file"),
        ("sub/u-*.tar", "no file matches .*u-"),
        ("sub/t-{0..9999999}.tar", "more than 1,000,000 names"),
    ):
        with pytest.raises(IngestError, match=says):
            keys(source)
    (tmp_path / "none").mkdir()
    with pytest.raises(IngestError, match=r"the folder has no \.tar file"):
        keys("none", "webdataset_tars")


def test_labels_come_from_the_field_that_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("run\njump\n")
    samples = {"a": ("jump", {"meta": {"class": 0}}), "b": ("run", {"meta": {"class": "jump"}})}
    files: Files = {}
    for key, (text, meta) in samples.items():
        files |= {f"{key}.mp4": b"x", f"{key}.txt": text.encode(), f"{key}.json": json.dumps(meta).encode()}
    tar, names = pack(tmp_path / "a.tar", files), f"classes={tmp_path / 'names.txt'}"

    def labels(*options: str) -> list[tuple[int | None, str | None]]:
        return [(record.label, record.label_name) for record in listed(tar, *options)]

    assert labels() == labels("label=none") == [(None, None)] * 2
    assert labels("label=txt", names) == [(1, "jump"), (0, "run")]
    assert labels("label=json.meta.class", names) == [(0, "run"), (1, "jump")]
    assert find_classes(tar, None, [names]) == ["run", "jump"]
    for options, says in (
        (["label=txt"], "a.tar: a.txt: label 'jump' is a name.*classes=FILE"),
        (["label=cls", names], r"a.tar: a: no member \.cls"),
        (["label=json.meta.clas", names], "a.tar: a: json has no meta.clas"),
        (["label=json.meta", names], "a.tar: a.json.meta: label .* is neither"),
    ):
        with pytest.raises(IngestError, match=says):
            labels(*options)
    assert [record.extra for record in listed(tar, "fields=txt")] == [{"txt": "jump"}, {"txt": "run"}]
    assert [record.extra for record in listed(tar, "fields=none")] == [None, None]


def test_a_field_that_no_sample_has_is_misspelled(tmp_path: Path) -> None:
    tar = pack(tmp_path / "a.tar", {"a.mp4": b"x", "b.mp4": b"x", "b.caption": b"hi"})
    assert [record.extra for record in listed(tar, "fields=json, .Caption")] == [None, {"caption": "hi"}]
    with pytest.raises(IngestError, match=r"a\.tar: no sample has a member \.captoin .*fields=captoin"):
        listed(tar, "fields=captoin")


def test_an_empty_label_names_the_remedy(tmp_path: Path) -> None:
    tar = pack(tmp_path / "a.tar", {"a.mp4": b"x", "a.cls": b"\n"})
    with pytest.raises(IngestError, match=r"a\.tar: a\.cls: the label is empty .*--option unlabeled="):
        listed(tar)
    assert listed(tar, "unlabeled=")[0].label is None


def test_of_several_videos_one_is_chosen(tmp_path: Path) -> None:
    tar = pack(tmp_path / "a.tar", {"k.left.mp4": b"left", "k.right.mp4": b"right", "l.left.mp4": b"2"})
    with pytest.raises(IngestError, match=r"a.tar: k: several videos: left.mp4, right.mp4 .*video=left.mp4"):
        listed(tar)
    assert [content(record) for record in listed(tar, "video=left.mp4")] == [b"left", b"2"]
    with pytest.raises(IngestError, match=r"a.tar: l: no video among its members: left.mp4"):
        listed(tar, "video=right.mp4")
    passed: list[PassedOver] = []
    assert [content(record) for record in listed(tar, "video=right.mp4", "missing=skip", passed=passed.append)] == [
        b"right"
    ]
    assert [(each.path.name, each.reason) for each in passed] == [("l", "samples without a video")]


def test_a_key_in_two_tars_names_both_and_a_prefix_tells_them_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pack(tmp_path / f"{name}.tar", {"x.mp4": name.encode(), "d/y z.mp4": b"2"})
    with pytest.raises(IngestError, match=r"b.tar: x.mp4: key 'x' occurs twice, first in .*a.tar: x.mp4"):
        listed(tmp_path)
    records = listed(tmp_path, "prefix=true")
    assert [content(record) for record in records] == [b"a", b"2", b"b", b"2"]
    assert records[0].key == "a_x" and records[2].key == "b_x" and len({record.key for record in records}) == 4


# ---- what is wrong with tars ----


def test_a_tar_that_ends_early_is_an_error_or_counted(tmp_path: Path) -> None:
    files = {f"{number}.{suffix}": b"v" * 700 for number in range(3) for suffix in ("mp4", "txt")}
    whole = pack(tmp_path / "whole.tar", files).read_bytes()
    assert len(listed(tmp_path / "whole.tar")) == 3
    tar = tmp_path / "cut.tar"
    end = 6 * 3 * 512  # of the last member, with its padding; the end mark follows
    for size in (*range(1, end + 1, 97), 512, 1024, 1536, end):
        tar.write_bytes(whole[:size])
        with pytest.raises(IngestError, match=r"cut\.tar: (cut short: it ends |not a tar: )") as caught:
            list(find_records(tar, None, []))
        assert "\n" not in str(caught.value)
        if size >= 512:
            passed: list[PassedOver] = []
            kept = list(find_records(tar, None, ["cut=keep"], on_passed_over=passed.append))
            assert [content(record) for record in kept] == [b"v" * 700] * ((size - 512) // 3072)
            assert [each.reason for each in passed] == ["tars cut short"]
    tar.write_bytes(whole[: end + 512])  # one block of zeros is an end mark, too
    assert len(listed(tar)) == 3


def damage(name: str, path: Path) -> Path:
    pack(path, {"a.mp4": b"v" * 600, "b.mp4": b"w" * 600, "c.mp4": b"u"})
    whole = bytearray(path.read_bytes())
    if name == "garbled":
        whole[3 * 512 : 3 * 512 + 100] = b"\xee" * 100
    elif name == "joined":
        whole += bytes(whole)
    elif name == "zeros":
        whole += bytes(8 << 20)
    elif name == "gzip":
        whole = bytearray(gzip.compress(whole))
    elif name == "empty":
        whole = bytearray()
    elif name == "text":
        whole = bytearray(b"no tar" * 200)
    elif name == "huge":
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
        whole[3 * 512 :] = info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("garbled", "damaged: what follows 'a.mp4' is not the header"),
        ("joined", "bytes follow the end mark behind 'c.mp4': several tars in one file"),
        ("zeros", "bytes follow the end mark"),
        ("gzip", "compressed with gzip"),
        ("empty", "x.tar: empty"),
        ("text", "not a tar"),
        ("huge", "damaged behind 'a.mp4': a header of"),
    ],
)
def test_a_damaged_tar_is_one_line(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(IngestError, match=f"x.tar: .*{says}|{says}") as caught:
        listed(damage(name, tmp_path / "x.tar"))
    assert "\n" not in str(caught.value)


def special(kind: bytes, name: str = "b.mp4", linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (special(tarfile.SYMTYPE, linkname="/x/y.mp4"), "b.mp4: a link to '/x/y.mp4'"),
        (special(tarfile.LNKTYPE, linkname="a.mp4"), "b.mp4: a link to 'a.mp4'"),
        (special(tarfile.GNUTYPE_SPARSE), "b.mp4: sparse"),
    ],
)
def test_members_whose_bytes_are_elsewhere_are_named(tmp_path: Path, info: tarfile.TarInfo, says: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        first = tarfile.TarInfo("a.mp4")
        first.size = 3
        tar.addfile(first, io.BytesIO(b"abc"))
        tar.addfile(info)
    with pytest.raises(IngestError, match=f"x.tar: {says}"):
        listed(tmp_path / "x.tar")


def test_real_sparse_files_of_gnu_tar_are_named(tmp_path: Path) -> None:
    with (tmp_path / "s.mp4").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    for form in ("gnu", "posix"):
        command = ["tar", "--sparse", f"--format={form}", "-cf", "s.tar", "s.mp4"]
        if subprocess.run(command, cwd=tmp_path, capture_output=True).returncode:
            pytest.skip("no GNU tar")
        with pytest.raises(IngestError, match=r"s.tar: s.mp4: sparse"):
            listed(tmp_path / "s.tar")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a.cls": b"1"}, "x.tar: a: no video among its members: cls"),
        ({"a.mp4": b"1", "a.MP4": b"2"}, r"x.tar: a: two members \.mp4"),
        ({"a.mp4": b"1", "a.cls": b"-1"}, "x.tar: a.cls: label -1 is below 0"),
        ({"a.mp4": b"1", "a.cls": b"\xff"}, "x.tar: a.cls: not text"),
        ({"a.mp4": b"1", "a.json": b"{"}, "x.tar: a.json: not JSON"),
        ({"a.mp4": b"1", "a.json": b'1, "b": 2'}, "x.tar: a.json: not JSON"),
        ({"a.mp4": b"1", "a.json": b'{"x": NaN}'}, "x.tar: a.json: x: not a finite number"),
        ({"a.mp4": b"1", "a.json": b'{"txt": 1}', "a.txt": b"2"}, "x.tar: a: two fields 'txt'"),
        ({"a.mp4": b"1", "a.txt": b"x" * 2_000_000}, "x.tar: a.txt: 2,000,000 bytes, of at most"),
        ({"a.mp4": b"1", "a.txt": b"x" * 100_000}, "x.tar: a.mp4: extra has 100,.* bytes"),
    ],
)
def test_a_sample_that_cannot_be_understood_is_one_line(tmp_path: Path, files: Files, says: str) -> None:
    with pytest.raises(RhofastError, match=says) as caught:
        listed(pack(tmp_path / "x.tar", files))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_spoiled_tars_are_whole_samples_or_one_line(tmp_path: Path, form: int) -> None:
    random = Random(form)
    fields = {"mp4": b"v" * 700, "json": b'{"a": 1}', "cls": b"1"}
    files = {f"{'d' * (90 if n == 2 else 3)}/{n}.{suffix}": fields[suffix] for n in range(4) for suffix in fields}
    whole, tar = pack(tmp_path / "whole.tar", files, format=form).read_bytes(), tmp_path / "x.tar"
    errors = 0
    for _ in range(150):
        spoiled, begin = bytearray(whole), random.randrange(len(whole) - 1024)
        kind = random.choice(["byte", "header", "cut", "insert", "delete", "zeros"])
        if kind == "byte":
            spoiled[begin] = random.randrange(256)
        elif kind == "header":  # one that a reader takes for whole: its checksum is right
            header = slice(begin // 512 * 512, begin // 512 * 512 + 512)
            spoiled[header.start + random.choice([0, 124, 130, 156, 157, 257, 345])] = random.choice(
                b"\0\x80\xff7SxgL5"
            )
            spoiled[header.start + 148 : header.start + 156] = b" " * 8
            spoiled[header.start + 148 : header.start + 156] = b"%06o\0 " % sum(spoiled[header])
        elif kind == "cut":
            del spoiled[begin:]
        elif kind == "insert":
            spoiled[begin:begin] = random.randbytes(random.choice([1, 511, 512]))
        elif kind == "delete":
            del spoiled[begin : begin + random.choice([1, 511, 512, 1024])]
        else:
            spoiled[begin : begin + 512] = bytes(512)
        tar.write_bytes(spoiled)
        try:
            for record in find_records(tar, None, ["missing=skip"]):
                assert isinstance(record.inside, ByteRange)
                assert 0 <= record.inside.offset <= record.inside.offset + record.inside.size <= len(spoiled)
        except RhofastError as error:
            assert "\n" not in str(error) and "x.tar" in str(error)
            errors += 1
    assert errors > 40


# ---- tars that are far away ----


def ahead() -> Callable[..., Any]:
    load_recipe("webdataset_tars")
    from _ahead import read_ahead

    return read_ahead  # type: ignore[no-any-return]


def test_sources_are_read_side_by_side_and_come_in_order() -> None:
    meeting = threading.Barrier(4, timeout=20)  # passed only if four are read at once

    def read(source: int) -> Iterator[int]:
        meeting.wait()
        yield from range(source)

    found = ahead()(range(8), read, at_once=4, held=2)
    assert [(source, list(items)) for source, items in found] == [(n, list(range(n))) for n in range(8)]


def test_an_error_is_raised_in_its_place_and_nothing_is_left_behind() -> None:
    def read(source: int) -> Iterator[int]:
        yield source
        if source == 1:
            raise ValueError("of the second")
        yield from range(1000)

    before, seen = threading.active_count(), []
    with pytest.raises(ValueError, match="of the second"):
        for _, items in ahead()(range(9), read, at_once=3, held=2):
            for item in items:
                seen.append(item)
    assert seen == [0, *range(1000), 1]
    found = ahead()(range(9), read, at_once=3, held=2)
    next(found)
    found.close()
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == before


PEAK = """
import resource, sys
from pathlib import Path
from rhofast.ingest.recipes import find_records
assert sum(1 for _ in find_records(Path(sys.argv[1]), None, [])) == int(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_tar(tmp_path: Path) -> None:
    def peak(count: int, size: int) -> int:
        path = tmp_path / f"{count}.tar"
        with path.open("wb") as file:
            for number in range(count):
                info = tarfile.TarInfo(f"{number}.mp4")
                info.size = size
                file.write(info.tobuf())
                file.truncate(file.tell() + (size + 511) // 512 * 512)  # sparse on the disk: its bytes take no space
                file.seek(0, 2)
            file.write(bytes(1024))
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(path), str(count)], capture_output=True, text=True, check=True
        )
        return int(done.stdout)  # KiB

    assert peak(20_000, 1 << 20) < peak(10, 1 << 20) + (8 << 10)  # 20 GiB against 10 MiB
