"""Lists of videos: what is read as it is usually written, and the line that is named if a list can mean two things."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from rhofast.errors import ConfigError, IngestError
from rhofast.ingest.listing import Listing
from rhofast.ingest.recipes import find_classes, find_records
from rhofast.storage.user_code import import_file
from tests.helpers.shards import ROOT

Entry = tuple[str, int | None, str | None]


def listed(folder: Path, text: str | bytes, *options: str) -> list[Entry]:
    source = folder / "list.csv"
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [
        (record.path.relative_to(folder).as_posix(), record.label, record.label_name)
        for record in find_records(source, None, options)
    ]


def labels(folder: Path, text: str | bytes, *options: str) -> list[int | None]:
    return [label for _, label, _ in listed(folder, text, *options)]


def error(folder: Path, text: str | bytes, *options: str) -> str:
    with pytest.raises(IngestError) as caught:
        listed(folder, text, *options)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.mp4 3\nb.mp4 0\n", [("a.mp4", 3, None), ("b.mp4", 0, None)]),
        ("a.mp4,1\r\nsub/b.mp4,2\r\n", [("a.mp4", 1, None), ("sub/b.mp4", 2, None)]),
        ("a.mp4\r\rb.mp4\r", [("a.mp4", None, None), ("b.mp4", None, None)]),
        ("a.mp4\tjump high\n", [("a.mp4", 0, "jump high")]),
        ("a.mp4\trun, then jump\n", [("a.mp4", 0, "run, then jump")]),
        ("a.mp4;3\nb.mp4;1\n", [("a.mp4", 3, None), ("b.mp4", 1, None)]),
        ("a.mp4|run\nb.mp4|jump\n", [("a.mp4", 1, "run"), ("b.mp4", 0, "jump")]),
        ('clip.mp4 "air drumming"\n', [("clip.mp4", 0, "air drumming")]),
        ("clip.mp4,air drumming\n", [("clip.mp4", 0, "air drumming")]),
        ("b.mp4,zumba\na.mp4,abseiling\n", [("b.mp4", 1, "zumba"), ("a.mp4", 0, "abseiling")]),
        (
            "a.mp4,sports/running\nb.mp4,sports/v1.0 x\n",
            [("a.mp4", 0, "sports/running"), ("b.mp4", 1, "sports/v1.0 x")],
        ),
        ("a.mp4 sports/running\n", [("a.mp4", 0, "sports/running")]),
        ('"a,b.mp4",3\nc.mp4,1\n', [("a,b.mp4", 3, None), ("c.mp4", 1, None)]),
        ('a.mp4,"Pushing [x], but ""not"" y"\n', [("a.mp4", 0, 'Pushing [x], but "not" y')]),
        ("my clip 2.mp4 3\n", [("my clip 2.mp4", 3, None)]),
        ("air drumming/b.mp4 copy.mp4   3\n", [("air drumming/b.mp4 copy.mp4", 3, None)]),
        ('"my clip.mp4" 3\n', [("my clip.mp4", 3, None)]),
        ("a.mp4\nmy b.mp4\n", [("a.mp4", None, None), ("my b.mp4", None, None)]),
        ("a, b.mp4 3\n-c#&()!.mp4 1\n", [("a, b.mp4", 3, None), ("-c#&()!.mp4", 1, None)]),
        ("abc 3\nxyz 0\n", [("abc", 3, None), ("xyz", 0, None)]),
        ("# made by hand\n\n#\na.mp4 1\n", [("a.mp4", 1, None)]),
        ("#20_Rhythm_clap.avi 0\nb.avi 1\n", [("#20_Rhythm_clap.avi", 0, None), ("b.avi", 1, None)]),
        ("\ufeffa.mp4 1\n", [("a.mp4", 1, None)]),
        ("./a.mp4 1\n", [("a.mp4", 1, None)]),
        ("\ufeffa.mp4,1\n\ufeffb.mp4,2\n", [("a.mp4", 1, None), ("b.mp4", 2, None)]),
        ("a.mp4,0,\nb.mp4,1,\n", [("a.mp4", 0, None), ("b.mp4", 1, None)]),
        (codecs.BOM_UTF16_LE + "é.mp4\t1\r\n".encode("utf-16-le"), [("é.mp4", 1, None)]),
    ],
)
def test_a_list_is_read_as_it_is_usually_written(tmp_path: Path, text: str | bytes, expected: list[Entry]) -> None:
    assert listed(tmp_path, text) == expected


@pytest.mark.parametrize(
    "header",
    [
        "path,label",
        "file_name,label",
        "path,target",
        "Video File,class_idx",
        "foo,bar",
        "#path,y",
        "video,",
        "p,action id",
    ],
)
def test_a_header_is_recognized_whatever_the_columns_are_called(tmp_path: Path, header: str) -> None:
    rows = "a.mp4,0\nb.mp4,1\nc.mp4,10\n"
    assert listed(tmp_path, f"{header}\n{rows}") == listed(tmp_path, rows)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("label,path\n2,a.mp4\n1,b.mp4\n", [("a.mp4", 2, None), ("b.mp4", 1, None)]),
        (",path,label\n0,a.mp4,5\n1,b.mp4,7\n", [("a.mp4", 5, None), ("b.mp4", 7, None)]),
        ("path,frames,label\na.mp4,25,3\n", [("a.mp4", 3, None)]),
        ("path,label,class_name\na.mp4,3,run\n", [("a.mp4", 3, "run")]),
        ("class,label,file\nrun,3,a.mp4\n", [("a.mp4", 3, "run")]),
        ("file_name,action\na.mp4,run\nb.mp4,jump\n", [("a.mp4", 1, "run"), ("b.mp4", 0, "jump")]),
        ("path\tlabel\na.mp4\t3\n", [("a.mp4", 3, None)]),
        ("path label\na b.mp4 3\n", [("a b.mp4", 3, None)]),
        ("filename\na.mp4\n", [("a.mp4", None, None)]),
        ("video_id,label\nabc,3\n", [("abc", 3, None)]),
        ("id,url,label\n1,https://x/a.mp4?s=1,3\n", None),
    ],
)
def test_columns_are_known_by_name_and_content(tmp_path: Path, text: str, expected: list[Entry] | None) -> None:
    if expected is None:
        (tmp_path / "list.csv").write_text(text.replace("https://x/a.mp4?s=1", "file:///x/a.mp4"))
        (record,) = find_records(tmp_path / "list.csv", None, [])
        assert (record.path, record.label) == (Path("/x/a.mp4"), 3)
    else:
        assert listed(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("a.mp4 25 0\nb.mp4 30 1\n", ["path_column=1", "label_column=3"], [0, 1]),
        ("path,split,label\na.mp4,train,4\n", ["path_column=path", "label_column=label"], [4]),
        ("path,foo,bar\na.mp4,1,2\n", ["path_column=PATH", "label_column=bar"], [2]),
        ("path,foo,bar\na.mp4,1,2\n", ["path_column=path", "label_column=none"], [None]),
        ("1,a.mp4\n", ["path_column=2"], [1]),
        ("Smith, John.mp4\nDoe, Jane.mp4\n", ["separator=none"], [None, None]),
        ("foo,bar\na.mp4,run\n", ["header=true"], [0]),
        ("foo,bar\na.mp4,run\n", ["header=false"], [0, 1]),
        ("a.mp4 run fast\nb.mp4 jump\n", ["separator=tab"], [None, None]),
        ("a.mp4,-1\nb.mp4,3\n", ["unlabeled=-1"], [None, 3]),
        ("a.mp4,-1.0\nb.mp4,3\n", ["unlabeled=-1"], [None, 3]),
        ("a.mp4,\nb.mp4,3\n", ["unlabeled="], [None, 3]),
        ("a.mp4,nan\nb.mp4,3.0\n", ["unlabeled=nan"], [None, 3]),
        ("a.mp4,2\nb.mp4,10\n", ["labels=names"], [1, 0]),
        ("a.mp4,360\nb.mp4,kickflip\n", ["labels=names"], [0, 1]),
        ("a.mp4,run;jump\nb.mp4,20231125\n", ["labels=names"], [1, 0]),
    ],
)
def test_options_choose(tmp_path: Path, text: str, options: list[str], expected: list[int | None]) -> None:
    assert labels(tmp_path, text, *options) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.mp4,0.0\nb.mp4,1.\nc.mp4,10.00\n", [0, 1, 10]),
        ("a.mp4 0.000000000000000000e+00\nb.mp4 1.000000000000000000e+01\n", [0, 10]),  # numpy.savetxt
        ("a.mp4,007\nb.mp4,+8\n", [7, 8]),
    ],
)
def test_whole_floats_are_numbers(tmp_path: Path, text: str, expected: list[int]) -> None:
    assert labels(tmp_path, text) == expected


NUMBERS = "".join(f"{number}.mp4,{number}\n" for number in range(300))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (NUMBERS + "x.mp4x,?\n", "list.csv:301: label '?' is a name, but others are numbers"),
        (NUMBERS + "x.mp4,0,1\n", "list.csv:301: 3 fields"),
        (NUMBERS + "x.mp4\n", "list.csv:301: this line has no label"),
        (NUMBERS + "x.mp4,\n", "list.csv:301: this line has no label"),
        (NUMBERS + ",3\n", "list.csv:301: no path"),
        (NUMBERS + "x.mp4,nan\n", "list.csv:301: label 'nan' is not a number"),
        (NUMBERS + "x.mp4,0.5\n", "list.csv:301: label '0.5' is not a class number"),
        (NUMBERS + "x.mp4,-1\n", "list.csv:301: label '-1' is below 0"),
        (NUMBERS + "x.mp4,1e999\n", "list.csv:301: label '1e999' is not a class number"),
        (NUMBERS + f"x.mp4,{'9' * 6000}\n", "list.csv:301: label '999"),
        (NUMBERS + 'x.mp4,"3\n', "list.csv:301: quotes do not match"),
        (NUMBERS + "3,x.mp4\n", "list.csv:301: the path is not the first of the fields"),
        (NUMBERS + "x.mp4,\0\n", "list.csv:301: a NUL character"),
        (NUMBERS + "x" * 70_000, "list.csv:301: field larger than"),
        ("a.mp4,run\nb.mp4,jump\nc.mp4,360\n", "list.csv:3: label '360' is a number, but others are names"),
        ("a.mp4\nb.mp4\nc.mp4,3\n", "list.csv:3: text behind the path"),
        ("a.mp4 25 0\nb.mp4 30 1\n", "list.csv:1: 3 fields"),
        ("a.mp4 run jump\n", "list.csv:1: 3 fields"),
        ("a.mp4 run,jump\n", "list.csv:1: label 'run,jump' looks like several labels"),
        ("a.mp4,1 5\nb.mp4,2\n", "list.csv:1: label '1 5' looks like several labels"),
        ('a.mp4,"1,5"\nb.mp4,2\n', "list.csv:1: label '1,5' looks like several labels"),
        (NUMBERS + f"x.mp4,{'9' * 60_000}x\n", "list.csv:301: label '9999"),
        ("a.mp4,run|jump\n", "list.csv:1: label 'run|jump' looks like several labels"),
        ("1,a.mp4\n2,b.mp4\n", "list.csv:1: the path is not the first"),
        ("1 a.mp4\n2 b.mp4\n", "list.csv:1: every line begins with a number"),
        ("foo,bar\na.mp4,run\nb.mp4,jump\n", "list.csv:1: 'foo, bar': no video is named here"),
        ("foo,bar\na.mp4,run\nb,jump\nc.mp4,swim\n", "list.csv:1: 'foo, bar': no video is named here"),
        ("foo,bar\na.mp4,1\nb,?\nc.mp4,3\n", "list.csv:3: label '?' is a name, but others are numbers"),
        ("path,label\na.mp4,1\nb.mp4,2,3\n", "list.csv:3: 3 fields in 2 columns"),
        ("path,split,label\na.mp4,train,4\n", "list.csv:1: it is not known what these columns mean: split"),
        (
            "path,label,start,stop,end\na.mp4,4,1,2,2\n",
            "list.csv:1: it is not known what these columns mean: stop, end",
        ),
        ("path,label,start_frame\na.mp4,4,1\n", "list.csv:1: it is not known what these columns mean: start_frame"),
        ("path,start,end\na.mp4,1,2\na.mp4,x,2\n", "list.csv:3: start='x' is not a time"),
        ("path,start,end\na.mp4,0:61,99\n", "list.csv:2: start='0:61' is not a time"),
        ("path,label\na.mp4,run\npath,label\nb.mp4,jump\n", "list.csv:3: the names of the columns again"),
        ("path,label,foo\na.mp4,4,1\n", "list.csv:1: it is not known what these columns mean: foo"),
        ("path,key,Key\na.mp4,one,1\n", "list.csv:1: it is not known what these columns mean: key, Key"),
        ("key,path\none,a.mp4\n,b.mp4\n", "list.csv:3: no key"),
        (
            "path,title\n" + "".join(f"{video}.mp4,A film {video}\n" for video in range(30)),
            "list.csv:1: it is not known what these columns mean: title",
        ),
        ("path,verb,noun\na.mp4,4,1\n", "list.csv:1: several columns may be the label: verb, noun"),
        ("path,label,target\na.mp4,4,1\n", "list.csv:1: several columns may be the label: label, target"),
        ("a.mp4 1\nb.mp4,2\nc.mp4 3\n", "list.csv:2: text behind the path"),
        ("a.mp4,b.mp4\nc.mp4,d.mp4\n", "list.csv:1: the path is not the first of the fields, or not the only one"),
        ('a.mp4,"[1, 2]"\nb.mp4,"[3]"\n', "list.csv:1: label '[1, 2]' looks like several labels"),
        ('{"path": "a.mp4", "label": 1}\n', "list.csv:1: JSON is not a list of lines"),
        ('[\n  ["a.mp4", 1],\n', "list.csv:1: JSON is not a list of lines"),
        (
            "label,youtube_id,time_start,split\nrun,abc,1,train\n",
            "list.csv:1: it is not known what these columns mean: split",
        ),
        ("a,b\0c\n", "list.csv:1: a NUL character"),
        ("v.mp4 1\n".encode("utf-16-le"), "list.csv:1: a NUL character"),
        (codecs.BOM_UTF16_LE + b"a\0\x00\xd8\n\0", "not UTF-16"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a NUL character"),
        ("\n# nothing\n\n", "no entries"),
        ("", "no entries"),
    ],
)
def test_the_odd_line_is_named(tmp_path: Path, text: str | bytes, says: str) -> None:
    assert says in error(tmp_path, text)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["label_column=4"], "label_column=4: there is no such column, only path, foo, bar"),
        (["path_column=file"], "path_column=file: there is no such column"),
        (["label_column=bar"], "it is not known what these columns mean: foo"),
        (["labels=numbers", "label_column=bar", "path_column=path"], "list.csv:2: label 'x' is not a number"),
    ],
)
def test_an_option_that_does_not_fit_is_named(tmp_path: Path, options: list[str], says: str) -> None:
    assert says in error(tmp_path, "path,foo,bar\na.mp4,1,x\n", *options)
    with pytest.raises(ConfigError, match="separator"):
        listed(tmp_path, "a.mp4 1", "separator=dash")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "jump\nrun\nswim\n"),
        ("names.txt", "0 jump\n1 run\n2 swim\n"),
        ("names.json", '{"run": 1, "\\"jump\\"": "0", "swim": 2}'),
        ("names.json", '["jump", "run", "swim"]'),
    ],
)
def test_a_file_of_classes_names_numbers_and_numbers_names(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    option = f"classes={tmp_path / name}"
    expected = [("a.mp4", 1, "run"), ("b.mp4", 0, "jump")]
    assert listed(tmp_path, "a.mp4 1\nb.mp4 0\n", option) == expected
    assert listed(tmp_path, "a.mp4 run\nb.mp4 jump\n", option) == expected
    assert find_classes(tmp_path / "list.csv", None, [option]) == ["jump", "run", "swim"]
    assert "list.csv:2: label 3, but there are 3 classes" in error(tmp_path, "a.mp4 1\nb.mp4 3\n", option)
    assert "list.csv:1: class 'rest' is not in the file of classes" in error(tmp_path, "a.mp4 rest\n", option)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("names.txt", "a\nb\na\n", "class 'a' occurs twice"),
        ("names.txt", "1 a\n2 b\n", "the numbers of the classes are not 0 to 1"),
        ("names.txt", "", "names no classes"),
        ("names.txt", "0 a\n0 b\n", ""),
        ("names.json", "{}", "names no classes"),
        ("names.json", '["a", "b", "a"]', "class 'a' occurs twice"),
        ("names.json", '[["a"], ["b"]]', "expected the names of classes"),
    ],
)
def test_a_file_of_classes_has_every_class_once(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    assert f"{name}: {says}" in error(tmp_path, "a.mp4 0\n", f"classes={tmp_path / name}")


def test_a_line_may_be_an_address(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file:///videos/a%20b.mp4 1\nb.mp4 0\n")
    paths = [record.path for record in find_records(tmp_path / "list.csv", None, [])]
    assert paths == [Path("/videos/a b.mp4"), tmp_path / "b.mp4"]


def test_relative_paths_count_from_root(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.mp4 1\n/x/b.mp4 2\n")
    found = [str(record.path) for record in find_records(tmp_path / "list.txt", None, ["root=/videos"])]
    assert found == ["/videos/a.mp4", "/x/b.mp4"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a.mp4 1\nb.mp4 99999999999\n", "list.csv:2: .*b.mp4: label 99999999999 is not in"),
        ("a.mp4 20231125\nb.mp4 20231126\n", "list.csv:1: .*a.mp4: label 20231125 is not in"),
        ("a.mp4 1\nb.mp4 90000\n", "list.csv:2: .*: label 90000 makes 90,001 classes, of which only 2 occur"),
        ("a.mp4 1\nb.mp4 2\n./a.mp4 3\n", r"list.csv:3: .*a.mp4: key 'a_\w+' occurs twice, first in .*list.csv:1"),
        ("path,label,class\na.mp4,1,run\nb.mp4,2,run\n", "list.csv:3: .*: labels 1 and 2 have one name, 'run'"),
        ("path,label,class\na.mp4,1,run\nb.mp4,1,jump\n", "list.csv:3: .*: label 1 is named 'jump' here and 'run'"),
    ],
)
def test_what_the_whole_listing_finds_names_the_line(tmp_path: Path, text: str, says: str) -> None:
    source = tmp_path / "list.csv"
    source.write_text(text)
    with pytest.raises(IngestError, match=says):
        Listing(find_records(source, None, []))


# ---- segments ----


def segments(folder: Path, text: str, *options: str) -> list[tuple[str, float | None, float | None, int | None]]:
    source = folder / "list.csv"
    source.write_text(text)
    found = list(find_records(source, None, options))
    assert len({record.key for record in found}) == len(found)
    return [(record.path.name, record.start, record.end, record.label) for record in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,start,end,label\na.mp4,1.5,3,0\na.mp4,3,,1\n", [("a.mp4", 1.5, 3.0, 0), ("a.mp4", 3.0, None, 1)]),
        ("label,end_time,start_time,file\n1,2.5,,a.mp4\n", [("a.mp4", None, 2.5, 1)]),
        ("path\tbegin\tstop\na b.mp4\t0:59.25\t1:00:01\n", [("a b.mp4", 59.25, 3601.0, None)]),
        ("video,time_start,time_end\na.mp4,10,20\nb.mp4,1e1,2e1\n", [("a.mp4", 10, 20, None), ("b.mp4", 10, 20, None)]),
    ],
)
def test_columns_of_times_make_segments(tmp_path: Path, text: str, expected: list[object]) -> None:
    assert segments(tmp_path, text) == expected


def test_columns_of_times_can_be_chosen_and_left_out(tmp_path: Path) -> None:
    text = "path,label,onset,end\na.mp4,0,1,2\n"
    assert segments(tmp_path, text, "start_column=onset") == [("a.mp4", 1.0, 2.0, 0)]
    assert segments(tmp_path, text, "start_column=3", "end_column=none") == [("a.mp4", 1.0, None, 0)]
    assert segments(tmp_path, text, "path_column=path", "label_column=label") == [("a.mp4", None, 2.0, 0)]
    both = ["path_column=path", "label_column=label", "end_column=none"]
    assert segments(tmp_path, text, *both) == [("a.mp4", None, None, 0)]
    without = "a.mp4,0.5,2,7\n"
    chosen = ["path_column=1", "label_column=4", "start_column=2", "end_column=3"]
    assert segments(tmp_path, without, "header=false", *chosen) == [("a.mp4", 0.5, 2.0, 7)]
    assert "start_column=when: there is no such column" in error(tmp_path, text, "start_column=when")


def test_a_column_has_the_keys_of_samples(tmp_path: Path) -> None:
    def keys(text: str, *options: str) -> list[str]:
        (tmp_path / "list.csv").write_text(text)
        with Listing(find_records(tmp_path / "list.csv", None, options)) as listing:
            return [record.key for record in listing]

    text = "key,path,label,start,end\none,a.mp4,0,1,2\ntwo,a.mp4,1,2,\n"
    made = keys("path,start,end\na.mp4,1,2\na.mp4,2,\n")
    assert keys(text) == ["one", "two"]
    assert keys(text, "key_column=none") == keys(text.replace("key", "id")) == made
    assert keys(text.replace("key", "id"), "key_column=id") == ["one", "two"]
    assert keys("one,a.mp4\ntwo,b.mp4\n", "key_column=1", "header=false") == ["one", "two"]
    with pytest.raises(IngestError, match=r"list.csv:3: .*key 'one' occurs twice, first in .*list.csv:2") as twice:
        keys("key,path\none,a.mp4\none,b.mp4\n")
    assert twice.value.hint is not None and "own key" in twice.value.hint
    with pytest.raises(IngestError, match=r"list.csv:2: .*key 'a/b' is not 1 to 80 ASCII letters") as wrong:
        keys("key,path\na/b,a.mp4\n")
    assert wrong.value.hint is not None and "key_column=none" in wrong.value.hint


def test_a_duration_beside_a_start_is_not_left_out_silently(tmp_path: Path) -> None:
    text = "path,start,duration,label\na.mp4,1,2,0\n"
    says = error(tmp_path, text)
    assert "list.csv:1: column 'duration' may be the duration of the segments" in says and "end_column=none" in says
    assert "may be the duration" in error(tmp_path, text, "path_column=path", "label_column=label")
    assert segments(tmp_path, text, "end_column=none") == [("a.mp4", 1.0, None, 0)]
    assert segments(tmp_path, "path,start,end,duration\na.mp4,1,2,1\n") == [("a.mp4", 1.0, 2.0, None)]


def test_a_column_without_name_and_values_is_none(tmp_path: Path) -> None:
    assert segments(tmp_path, "path,start,end,\na.mp4,1,2,\n") == [("a.mp4", 1.0, 2.0, None)]
    notes = "".join(f"{number}.mp4,1,2,note {number}\n" for number in range(30))
    assert "it is not known what these columns mean: ''" in error(tmp_path, f"path,start,end,\n{notes}")


def test_times_without_names_of_columns_are_an_error_with_the_remedy(tmp_path: Path) -> None:
    assert "in a first line, such as path,label,start,end" in error(tmp_path, "a.mp4,0,1,2\nb.mp4,0,1,2\n")


def test_keys_of_segments_do_not_depend_on_how_times_are_written(tmp_path: Path) -> None:
    keys = []
    for start in ("90", "90.0", "1:30", "0:01:30.00"):
        (tmp_path / "list.csv").write_text(f"path,start\na.mp4,{start}\n")
        keys += [record.key for record in find_records(tmp_path / "list.csv", None, [])]
    assert len(set(keys)) == 1


def test_very_many_segments_of_one_file_have_keys_of_their_own() -> None:
    segment_key = import_file(ROOT / "shards" / "_paths.py", "helper").segment_key
    name = "a long name of a video, to the last character.mp4"
    keys = {segment_key(name, k * 0.01, k * 0.01 + 2) for k in range(60_000)}
    assert len(keys) == 60_000 and max(map(len, keys)) <= 74  # windows add to them


def test_a_segment_that_is_listed_twice_or_ends_before_it_begins_is_named(tmp_path: Path) -> None:
    for text, says in {
        "path,start,end\na.mp4,1,2\na.mp4,1.0,2\n": "list.csv:3.*occurs twice",
        "path,start,end\na.mp4,1,2\na.mp4,3,2\n": "list.csv:3.*end=2 is not after start=3",
    }.items():
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(IngestError, match=says), Listing(find_records(tmp_path / "list.csv", None, [])):
            pass
