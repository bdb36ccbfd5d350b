"""Recipes of published data sets, on small replicas of what one really finds on disk."""

import json
from pathlib import Path

import pytest

from rhofast.errors import ConfigError, IngestError
from rhofast.ingest.listing import Listing
from rhofast.ingest.recipes import (
    describe_recipe,
    find_classes,
    find_records,
    listed_split,
    published_count,
    recipe_names,
)

Entry = tuple[str, str, int | None, str | None]

PUBLISHED = ("ava", "charades", "hmdb51", "kinetics", "ssv2", "ucf101")


def replica(folder: Path, texts: dict[str, str], *videos: str) -> Path:
    """Text files with what is in them, and empty video files."""
    for name, text in {**texts, **dict.fromkeys(videos, "")}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return folder


def entries(source: Path, recipe: str, *options: str, base: Path | None = None) -> list[Entry]:
    """(key, path below `base` or the source, label, its name) of each record."""
    return [
        (record.key, record.path.relative_to(base or source).as_posix(), record.label, record.label_name)
        for record in find_records(source, recipe, options)
    ]


def paths(source: Path, recipe: str, *options: str) -> list[str]:
    return [path for _, path, _, _ in entries(source, recipe, *options)]


def error(source: Path, recipe: str, *options: str) -> str:
    with pytest.raises(IngestError) as caught:
        list(find_records(source, recipe, options))
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------- Kinetics

TRAIN = """label,youtube_id,time_start,time_end,split,is_cc\r
"zumba",--a_-b-c_d1,5,15,train,0\r
"air drumming",_dbcJuKJQNs,40.0,50.0,train,0\r
"massaging person's head",-x3456789ab,100,110,train,0\r
"air drumming",gone4567890,0,10,train,1\r
"""
VAL = "label,youtube_id,time_start,time_end,split\nzumba,v2345678901,1,11,validate\n"
TEST = "youtube_id,time_start,time_end,split\nt2345678901,1,11,test\n"
CSV = {"annotations/train.csv": TRAIN, "annotations/val.csv": VAL, "annotations/test.csv": TEST}
DRUM, HEAD, ZUMBA = "_dbcJuKJQNs_000040_000050", "-x3456789ab_000100_000110", "--a_-b-c_d1_000005_000015"


def test_kinetics_as_cvdf_unpacks_it(tmp_path: Path) -> None:
    replaced = f"replacement/replacement_for_corrupted_k400/{DRUM}.mp4"
    videos = [
        f"train/{ZUMBA}.mp4",
        f"train/{DRUM}.mp4",
        f"train/{HEAD}.avi",
        replaced,
        "val/v2345678901_000001_000011.mkv",
        "test/x.mp4",
    ]
    source = replica(tmp_path, CSV, *videos)
    expected = [
        (ZUMBA, f"train/{ZUMBA}.mp4", 2, "zumba"),
        (DRUM, replaced, 0, "air drumming"),
        (HEAD, f"train/{HEAD}.avi", 1, "massaging person's head"),
        ("gone4567890_000000_000010", "train/gone4567890_000000_000010.mp4", 0, "air drumming"),
    ]
    assert entries(source, "kinetics") == expected
    assert entries(source, "kinetics", "split=train") == expected
    assert entries(source / "annotations" / "train.csv", "kinetics", base=source) == expected
    key = "v2345678901_000001_000011"
    assert entries(source, "kinetics", "split=val") == [(key, f"val/{key}.mkv", 2, "zumba")]
    key = "t2345678901_000001_000011"
    assert entries(source, "kinetics", "split=test") == [(key, f"test/{key}.mp4", None, None)]


@pytest.mark.parametrize("above", ["train/", "", "videos/train/", "train_256/", "videos_train/"])
def test_kinetics_in_class_folders_however_they_are_spelled(tmp_path: Path, above: str) -> None:
    videos = [
        f"{above}zumba/{ZUMBA}.mp4",
        f"{above}air_drumming/{DRUM}.webm",
        f"{above}massaging_persons_head/{HEAD}.mp4",
        f"{above}air_drumming/._gone4567890_000000_000010.mp4",
    ]
    replica(tmp_path, {}, f"{above}air drumming/other.mp4")  # two folders of one class
    missing = f"{above}air drumming/gone4567890_000000_000010.mp4"
    assert paths(replica(tmp_path, CSV, *videos), "kinetics") == [*videos[:3], missing]


def test_kinetics_files_of_other_names_and_places(tmp_path: Path) -> None:
    texts = {
        "lists/kinetics_train.csv": TRAIN,
        "lists/kinetics_validate.csv": VAL,
        "lists/._kinetics_validate.csv": "x",
    }
    source = replica(tmp_path, texts, "val/v2345678901_000001_000011.mp4", f"other/{DRUM}.mp4")
    options = (f"annotations={source / 'lists'}", "split=val")
    assert paths(source, "kinetics", *options) == ["val/v2345678901_000001_000011.mp4"]
    found = entries(source / "lists/kinetics_train.csv", "kinetics", f"root={source / 'other'}", base=source)
    assert [path for _, path, _, _ in found][1] == f"other/{DRUM}.mp4"
    found = entries(source / "lists/kinetics_train.csv", "kinetics", f"replacement={source / 'other'}", base=source)
    assert [path for _, path, _, _ in found][1] == f"other/{DRUM}.mp4"


def test_kinetics_with_all_splits_in_one_csv(tmp_path: Path) -> None:
    source = replica(tmp_path, {"k700.csv": TRAIN + "zumba,v2345678901,1,11,validate,0\n"}) / "k700.csv"
    assert len(list(find_records(source, "kinetics", []))) == 5
    assert [record.label for record in find_records(source, "kinetics", ["split=val"])] == [2]


def test_kinetics_reads_the_lists_of_pyslowfast(tmp_path: Path) -> None:
    source = replica(tmp_path, {"train.csv": "a b/x.mp4 3\n-y.mp4 0\n", "val.csv": "z.mp4 1\n"})
    for place in (source, source / "train.csv"):
        assert [entry[1:3] for entry in entries(place, "kinetics", base=source)] == [("a b/x.mp4", 3), ("-y.mp4", 0)]
    assert paths(source, "kinetics", "split=val") == ["z.mp4"]
    assert published_count(source, "kinetics", []) is None


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("train.csv", "label,youtube_id,time_start\n", "train.csv:1: no column time_end"),
        ("train.csv", TRAIN + "a,b,c\n", "train.csv:6: 3 fields in 6 columns"),
        ("train.csv", f'{TRAIN}"{"x" * 200_000}', "train.csv:6: field larger"),
        ("train.csv", TRAIN.replace("40.0", "soon"), "train.csv:3: times 'soon'"),
        ("train.csv", TRAIN.replace("gone", "g/ne"), "train.csv:5: 'g/ne"),
        ("val.csv", VAL, "no train.csv"),
        ("k400_train.csv", TRAIN, "give one of them"),
    ],
)
def test_kinetics_says_where_it_is_at_odds(tmp_path: Path, name: str, text: str, says: str) -> None:
    source = replica(tmp_path, {name: text, **({"k600_train.csv": TRAIN} if name.startswith("k400") else {})})
    assert says in error(source, "kinetics")


def test_kinetics_numbers_no_class_that_training_does_not_have(tmp_path: Path) -> None:
    source = replica(tmp_path, {"val.csv": VAL})
    assert "val.csv: class numbers need the train csv" in error(source, "kinetics", "split=val")
    replica(tmp_path, {"train.csv": TRAIN, "val.csv": VAL.replace("zumba", "rumba")})
    assert "val.csv:2: class 'rumba' is not in the train csv" in error(source, "kinetics", "split=val")
    assert "the file name says val" in error(source / "val.csv", "kinetics", "split=train")


def test_a_set_is_of_the_split_that_was_listed(tmp_path: Path) -> None:
    source = replica(tmp_path, {"train.csv": TRAIN, "val.csv": VAL})
    assert [listed_split(source, "kinetics", given) for given in ([], ["split=val"])] == ["train", "val"]
    assert listed_split(source / "val.csv", "kinetics", []) == "val"
    all_rows = (source / "val.csv").rename(source / "k400.csv")
    assert listed_split(all_rows, "kinetics", []) == "all" and listed_split(tmp_path / "x", "kinetics", []) == "all"
    for recipe, other in (
        ("ucf101", "test"),
        ("hmdb51", "test"),
        ("ava", "val"),
        ("charades", "test"),
        ("ssv2", "val"),
    ):
        found = [listed_split(tmp_path, recipe, given) for given in ([], [f"split={other}"])]
        assert found == ["train", other], recipe
    assert listed_split(tmp_path / "ava_val_v2.2.csv", "ava", ["split=train"]) == "train"  # not there
    (tmp_path / "ava_val_v2.2.csv").touch()
    assert listed_split(tmp_path / "ava_val_v2.2.csv", "ava", []) == "val"
    assert [listed_split(tmp_path, "folder", given) for given in ([], ["split=test"])] == ["all", "test"]
    assert listed_split(tmp_path, "csv_list", []) == "all"


def test_kinetics_400_is_known_by_its_classes(tmp_path: Path) -> None:
    rows = [f"class {number},abcdefghij_,{number},{number + 10},train" for number in range(400)]
    text = "\n".join(["label,youtube_id,time_start,time_end,split", *rows])
    source = replica(tmp_path, {"train.csv": text, "val.csv": VAL, "test.csv": TEST})
    assert [published_count(source, "kinetics", [f"split={split}"]) for split in ("train", "val")] == [246_534, 19_906]
    assert published_count(source / "val.csv", "kinetics", []) == 19_906
    replica(tmp_path, {"train.csv": TRAIN})
    assert published_count(source, "kinetics", ["split=train"]) is None
    assert published_count(source / "nowhere", "kinetics", []) is None


# ------------------------------------------------------------------------------------------------------------ UCF101

UCF = {
    "classInd.txt": "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n",
    "trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n"
    "HandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n\r\n",
    "testlist01.txt": "HandstandPushups/v_HandStandPushups_g01_c01.avi\r\nApplyEyeMakeup/v_ApplyEyeMakeup_g01_c02.avi",
    "testlist03.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\n",
}


@pytest.mark.parametrize(("lists", "videos"), [("ucfTrainTestlist", "UCF-101"), ("annotations", "videos"), (".", ".")])
def test_ucf101_by_its_lists(tmp_path: Path, lists: str, videos: str) -> None:
    eye, stand = f"{videos}/ApplyEyeMakeup/v_ApplyEyeMakeup", f"{videos}/HandStandPushups/v_HandstandPushups"
    files = [f"{eye}_g08_c01.avi", f"{stand}_g08_c01.avi", f"{stand}_g01_c01.mp4"]
    source = replica(tmp_path, {f"{lists}/{name}": text for name, text in UCF.items()}, *files)
    eye, stand = eye.removeprefix("./"), stand.removeprefix("./")
    assert entries(source, "ucf101") == [
        ("v_ApplyEyeMakeup_g08_c01", f"{eye}_g08_c01.avi", 0, "ApplyEyeMakeup"),
        ("v_HandStandPushups_g08_c01", f"{stand}_g08_c01.avi", 1, "HandstandPushups"),
    ]
    assert entries(source, "ucf101", "split=test") == [
        ("v_HandStandPushups_g01_c01", f"{stand}_g01_c01.mp4", 1, "HandstandPushups"),
        ("v_ApplyEyeMakeup_g01_c02", f"{eye}_g01_c02.avi", 0, "ApplyEyeMakeup"),  # missing
    ]
    assert paths(source, "ucf101", "split=test", "fold=3") == [f"{eye}_g01_c01.avi"]


def test_ucf101_with_the_lists_beside_the_videos_or_elsewhere(tmp_path: Path) -> None:
    source = replica(tmp_path, {f"ucfTrainTestlist/{name}": text for name, text in UCF.items()}) / "UCF-101"
    source.mkdir()
    expected = "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi"
    assert paths(source, "ucf101")[0] == expected
    options = [f"root={source}", f"annotations={tmp_path / 'ucfTrainTestlist'}"]
    assert entries(tmp_path / "x", "ucf101", *options, base=source)[0][1] == expected


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("trainlist01.txt", "\nJump/v_x.avi 1\n", "trainlist01.txt:2: class 'Jump' is not in classInd.txt"),
        ("trainlist01.txt", "ApplyEyeMakeup/v_x.avi 2\n", "trainlist01.txt:1: expected ApplyEyeMakeup/v_x.avi 1"),
        ("classInd.txt", "0 ApplyEyeMakeup\n", "classInd.txt:1: expected `1 CLASS`"),
    ],
)
def test_ucf101_says_where_it_is_at_odds(tmp_path: Path, name: str, text: str, says: str) -> None:
    assert says in error(replica(tmp_path, {**UCF, name: text}), "ucf101")
    assert "no trainlist02.txt" in error(tmp_path, "ucf101", "fold=2")
    assert "fold=4" in error(tmp_path, "ucf101", "fold=4")


def test_ucf101_counts(tmp_path: Path) -> None:
    folds = [
        [published_count(tmp_path, "ucf101", [f"split={s}", f"fold={n}"]) for s in ("train", "test")] for n in (1, 2, 3)
    ]
    assert all(sum(filter(None, fold)) == 13_320 for fold in folds)
    assert published_count(tmp_path, "ucf101", []) == 9_537


# ------------------------------------------------------------------------------------------------------------ HMDB51

ODD = "#20_(Rad)Schlag_die_Bank!_&_more_wave_f_cm_np1_le_med_0.avi"


@pytest.mark.parametrize(
    ("lists", "videos"), [("testTrainMulti_7030_splits/", "hmdb51_org/"), ("annotations/", ""), ("", "")]
)
def test_hmdb51_by_its_lists(tmp_path: Path, lists: str, videos: str) -> None:
    texts = {
        f"{lists}wave_test_split1.txt": f"{ODD} 1 \r\nplain.avi 2 \r\nneither.avi 0 \r\n",
        f"{lists}brush_hair_test_split1.txt": "April_09.avi 1 \nplain.avi 2 \n",
        f"{lists}wave_test_split2.txt": f"{ODD} 2 \n",
        f"{lists}readme.txt": "about these files",
    }
    source = replica(tmp_path, texts, f"{videos}wave/{ODD}", f"{videos}brush_hair/plain.mp4", f"{videos}wave/plain.avi")
    train, test = (entries(source, "hmdb51", f"split={split}") for split in ("train", "test"))
    assert [entry[1:] for entry in train] == [
        (f"{videos}brush_hair/April_09.avi", 0, "brush_hair"),  # missing
        (f"{videos}wave/{ODD}", 1, "wave"),
    ]
    assert [entry[1:] for entry in test] == [
        (f"{videos}brush_hair/plain.mp4", 0, "brush_hair"),
        (f"{videos}wave/plain.avi", 1, "wave"),
    ]
    keys = [key for key, *_ in train + test]
    assert len(set(keys)) == 4
    assert keys[1].startswith("20__Rad_Schlag_die_Bank____more_wave_f_c_")
    assert entries(source, "hmdb51", "split=test", "fold=2")[0][::2] == (keys[1], 0)  # one key in all folds


@pytest.mark.parametrize("line", ["plain.avi", "plain.avi 3", "plain.avi,1"])
def test_hmdb51_says_where_it_is_at_odds(tmp_path: Path, line: str) -> None:
    source = replica(tmp_path, {"wave_test_split1.txt": f"a.avi 1\n{line}\n"})
    assert "wave_test_split1.txt:2: expected" in error(source, "hmdb51")
    assert "no CLASS_test_split3.txt" in error(source, "hmdb51", "fold=3")
    assert "fold=0" in error(source, "hmdb51", "fold=0")
    assert published_count(source, "hmdb51", ["split=test", "fold=3"]) == 1_530


# -------------------------------------------------------------------------------------------- Something-Something v2

LABELS = {"Holding something next to something": "41", "Putting something": "173"}
ITEMS = [
    {"id": "78687", "label": "holding potato", "template": "Holding [something] next to [something]"},
    {"id": "12", "label": "putting cup", "template": "Putting [something]"},
]
HELD, PUT = (41, "Holding something next to something"), (173, "Putting something")


def ssv2_files(prefix: str) -> dict[str, str]:
    contents = {"train": ITEMS, "validation": ITEMS[:1], "test": [{"id": "5"}, {"id": "6"}], "labels": LABELS}
    return {f"{prefix}{name}.json": json.dumps(content, indent=1) for name, content in contents.items()}


@pytest.mark.parametrize("prefix", ["labels/", "something-something-v2-", "annotations/something-something-v2-", ""])
@pytest.mark.parametrize("videos", ["20bn-something-something-v2", "videos/20bn-something-something-v2", "videos"])
def test_ssv2_in_both_naming_styles(tmp_path: Path, prefix: str, videos: str) -> None:
    source = replica(tmp_path, ssv2_files(prefix), f"{videos}/78687.mp4", f"{videos}/5.webm")
    assert entries(source, "ssv2") == [
        ("78687", f"{videos}/78687.mp4", *HELD),
        ("12", f"{videos}/12.webm", *PUT),  # missing
    ]
    assert entries(source, "ssv2", "split=val") == [("78687", f"{videos}/78687.mp4", *HELD)]
    unlabeled = [("5", f"{videos}/5.webm", None, None), ("6", f"{videos}/6.webm", None, None)]
    assert entries(source, "ssv2", "split=test") == unlabeled


def test_ssv2_takes_the_answers_of_the_test_split_where_they_are(tmp_path: Path) -> None:
    answers = "6;Putting something\r\n5;Holding something next to something\r\n"
    source = replica(tmp_path, {**ssv2_files("labels/"), "labels/test-answers.csv": answers})
    assert [entry[2:] for entry in entries(source, "ssv2", "split=test")] == [HELD, PUT]
    replica(source, {"labels/test-answers.csv": "5,Putting something\n"})
    assert "test-answers.csv:1: expected `id;template`" in error(source, "ssv2", "split=test")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train.json", '[{"id": "1",\n "template": Put}]', "train.json:2: not JSON"),
        ("train.json", '[{"id": "1"}, {"label": "x"}]', "train.json: entry 2: expected an object with an id"),
        ("train.json", '[{"id": 1, "template": "Eating [something]"}]', "entry 1: 'Eating something' is not in labels"),
        ("labels.json", '["Putting something"]', "labels.json: expected numbers by template"),
    ],
)
def test_ssv2_says_where_it_is_at_odds(tmp_path: Path, name: str, content: str, says: str) -> None:
    assert says in error(replica(tmp_path, {**ssv2_files(""), name: content}), "ssv2")


def test_ssv2_without_its_files_is_an_error(tmp_path: Path) -> None:
    assert "no something-something-v2-train.json or train.json" in error(tmp_path, "ssv2")
    assert sum(published_count(tmp_path, "ssv2", [f"split={s}"]) or 0 for s in ("train", "val", "test")) == 220_847


# --------------------------------------------------------------------------------------------------------- uncurated


def test_a_lake_is_walked_in_sorted_order_without_labels(tmp_path: Path) -> None:
    names = ["b.mp4", "a/z.webm", "a/deep/er/é.MKV", "a.mp4", "a/a.mov", "c/same.mp4", "d/same.mp4"]
    source = replica(tmp_path / "lake", {"a/a.info.json": "{}", ".hidden/x.mp4": "", "c/.x.mp4": ""}, *names)
    (source / "c" / "loop").symlink_to(source)
    found = entries(source, "uncurated")
    expected = ["a/a.mov", "a/deep/er/é.MKV", "a/z.webm", "a.mp4", "b.mp4", "c/same.mp4", "d/same.mp4"]
    assert [path for _, path, _, _ in found] == expected
    assert all(entry[2:] == (None, None) for entry in found)
    keys = [key for key, *_ in found]
    assert len(set(keys)) == len(keys)
    assert all(key.isascii() and len(key) <= 61 for key in keys)
    (source / "c" / "more.mp4").touch()
    assert set(keys) < {key for key, *_ in entries(source, "uncurated")}


def test_a_lake_is_listed_as_it_is_walked(tmp_path: Path) -> None:
    records = find_records(replica(tmp_path, {}, "a/1.mp4", "b/2.mp4"), "uncurated", [])
    assert next(records).path.name == "1.mp4"
    replica(tmp_path, {}, "b/3.mp4")
    assert [record.path.name for record in records] == ["2.mp4", "3.mp4"]


def test_a_lake_elsewhere_is_linked_into_it(tmp_path: Path) -> None:
    replica(tmp_path, {}, "disk/x.mp4", "lake/y.mp4")
    (tmp_path / "lake" / "more").symlink_to(tmp_path / "disk")
    assert paths(tmp_path / "lake", "uncurated") == ["more/x.mp4", "y.mp4"]
    assert "not a folder" in error(tmp_path / "nowhere", "uncurated")


# --------------------------------------------------------------------------------------------------------------- all


def test_every_split_has_the_classes_of_the_data_set(tmp_path: Path) -> None:
    ssv2 = replica(tmp_path / "ssv2", {**ssv2_files(""), "labels.json": json.dumps({"Holding x": 0, "Putting x": 1})})
    replica(ssv2, {"validation.json": json.dumps([{"id": "9", "template": "Putting [x]"}])})
    ucf = replica(tmp_path / "ucf", {**UCF, "testlist01.txt": "HandstandPushups/v_HandStandPushups_g01_c01.avi\n"})
    lists = {f"{name}_test_split1.txt": f"{name}.avi {mark}\n" for name, mark in (("wave", 2), ("hug", 1))}
    hmdb, k400 = replica(tmp_path / "hmdb", lists), replica(tmp_path / "k400", CSV)
    folder = replica(tmp_path / "folder", {}, "run/a.mp4", "walk/a.mp4", "walk/b.mp4")
    expected = {
        ("ssv2", ssv2, "split=val"): (["Holding x", "Putting x"], {1}),
        ("ucf101", ucf, "split=test"): (["ApplyEyeMakeup", "HandstandPushups"], {1}),
        ("hmdb51", hmdb, "split=test"): (["hug", "wave"], {1}),
        ("kinetics", k400, "split=val"): (["air drumming", "massaging person's head", "zumba"], {2}),
        ("folder", folder, "split=test"): (["run", "walk"], {1}),
    }
    for (recipe, source, split), (names, labels) in expected.items():
        options = [split, "holdout=0.5"] if recipe == "folder" else [split]
        with Listing(find_records(source, recipe, options), classes=find_classes(source, recipe, options)) as listing:
            assert listing.class_names() == names
            assert {record.label for record in listing} == labels
    assert find_classes(tmp_path, "motions", [])[0] == "bob"
    assert find_classes(tmp_path, "uncurated", []) == []


# --------------------------------------------------------------------------------------------------------------- AVA

AVA_TRAIN = """-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1
-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,9,1
_ab,1798,0.1,0.1,0.2,0.2,12,0
-5KQ66BBWC4,0903,0.077,0.151,0.283,0.811,80,1
gone,0902,0.1,0.1,0.2,0.2,12,0
"""
AVA_CSV = {"annotations/ava_train_v2.2.csv": AVA_TRAIN, "annotations/ava_train_v2.1.csv": "old,0902,0,0,1,1,1,1\n"}
AVA_CSV |= {"annotations/ava_val_v2.2.csv": "v-1,0902,0,0,1,1,1,1\n"}


@pytest.mark.parametrize("above", ["trainval/", "videos/", "videos/trainval/", ""])
def test_ava_lists_each_movie_of_the_newest_csv_once(tmp_path: Path, above: str) -> None:
    source = replica(tmp_path, AVA_CSV, f"{above}-5KQ66BBWC4.mkv", f"{above}_ab.webm", f"{above}v-1.mp4")
    found = list(find_records(source, "ava", []))
    assert [(record.key, record.path.relative_to(source).as_posix()) for record in found] == [
        ("-5KQ66BBWC4", f"{above}-5KQ66BBWC4.mkv"),
        ("_ab", f"{above}_ab.webm"),
        ("gone", f"{above}gone.mkv"),
    ]
    assert all((record.start, record.end, record.label) == (900, 1801, None) for record in found)
    assert found[1].where.endswith("ava_train_v2.2.csv:3")
    assert paths(source, "ava", "split=val") == [f"{above}v-1.mp4"]
    again = find_records(source / "annotations/ava_train_v2.2.csv", "ava", ["start=1", "end=3"])
    assert [(record.path, record.start, record.end) for record in again] == [(one.path, 1.0, 3.0) for one in found]
    assert published_count(source, "ava", ["split=val"]) == 64
    assert published_count(source / "annotations/ava_train_v2.2.csv", "ava", []) == 235


def test_ava_says_where_it_is_at_odds(tmp_path: Path) -> None:
    assert "no ava_train_v2.2.csv in" in error(tmp_path, "ava")
    source = replica(tmp_path, {"ava_train_v2.2.csv": "a,0902,0,0,1,1,1,1\n../b,0902,0,0,1,1,1,1\n"})
    assert "ava_train_v2.2.csv:2: '../b' is not the id of a video" in error(source, "ava")


def test_helpers_of_recipes_are_none() -> None:
    assert set(PUBLISHED) | {
        "csv_list",
        "curator",
        "folder",
        "motions",
        "parquet",
        "records",
        "uncurated",
        "webdataset_tars",
    } == set(recipe_names())
    with pytest.raises(ConfigError, match="records"):
        find_records(Path(), "_paths", [])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_set_tells_how_to_get_it_under_what_terms_and_its_options(name: str) -> None:
    text = describe_recipe(name)
    assert all(
        word in text for word in (f"{name}: ", "Download: https://", "License: ", f"--recipe {name}", "SOURCE is")
    )
    assert any(line.split()[:2] == ["split", "train"] for line in text.splitlines())
    assert any(line.split() == ["root", "path", "default:", "none"] for line in text.splitlines())


def test_a_recipe_of_one_s_own_is_described_as_far_as_it_says_something(tmp_path: Path) -> None:
    for name, options in (("bare_recipe", ""), ("bold_recipe", ", *, limit: float, names=('a',)")):
        replica(tmp_path, {f"{name}.py": f"def records(source{options}):\n    yield from ()\n"})
    bare, bold = (describe_recipe(str(tmp_path / f"{name}_recipe.py")) for name in ("bare", "bold"))
    assert bare.endswith("This recipe has no options.")
    assert bold.splitlines()[-2].split() == ["limit", "float", "default:", "required"]
    assert published_count(tmp_path, str(tmp_path / "bare_recipe.py"), []) is None
    with pytest.raises(ConfigError, match="not known"):
        describe_recipe("nope")


@pytest.mark.parametrize("name", [*PUBLISHED, "uncurated"])
def test_options_are_checked(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="unknown option 'splt'"):
        find_records(tmp_path, name, ["splt=x"])
