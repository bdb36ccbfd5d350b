"""The output of NeMo Curator's video pipeline: its layout, conditions on metadata, and what is passed over."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError, RhofastError
from rhofast.ingest.listing import Listing, PassedOverCount
from rhofast.ingest.recipes import _load as load_recipe
from rhofast.ingest.recipes import find_classes, find_records

NAMES = [str(uuid.UUID(int=number)) for number in range(6)]


def clip_metadata(number: int, *, kept: bool = True, **more: Any) -> dict[str, Any]:
    """Return metadata with the keys that the clip writer writes."""
    return {
        "span_uuid": NAMES[number],
        "source_video": "/in/long.mp4",
        "duration_span": [10.0 * number, 10.0 * number + 10],
        "width_source": 1920 if number % 2 else 1280,
        "clip_location": f"/elsewhere/{'clips' if kept else 'filtered_clips'}/{NAMES[number]}.mp4",
        "motion_score": {"global_mean": number / 10, "per_patch_min_256": 0.0},
        "windows": [{"start_frame": 0, "end_frame": 30, "qwen_caption": f"caption {number}"}],
        "valid": number != 3,
        **more,
    }


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Clips 0 to 3, of which 2 and 3 have an aesthetic score, filtered clip 4, and clip 5 without metadata."""
    for folder in ("clips", "filtered_clips", "metas/v0", "previews", "processed_videos"):
        (tmp_path / folder).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (tmp_path / ("filtered_clips" if number == 4 else "clips") / f"{name}.mp4").write_bytes(b"x")
        more = {"aesthetic_score": float(number)} if number in (2, 3) else {}
        if number != 5:
            content = json.dumps(clip_metadata(number, kept=number != 4, **more))
            (tmp_path / "metas/v0" / f"{name}.json").write_text(content)
    (tmp_path / "clips" / "notes.txt").write_text("none")
    return tmp_path


def listed(output: Path, *options: str) -> tuple[list[VideoRecord], Counter[str]]:
    passed = PassedOverCount()
    records = find_records(output, "curator", options, on_passed_over=passed.add)
    with Listing(records, classes=find_classes(output, "curator", options)) as listing:
        return list(listing), passed.counts


def numbers(output: Path, *options: str) -> list[int]:
    return [NAMES.index(record.key) for record in listed(output, *options)[0]]


@pytest.mark.parametrize("folder", ["clips", "."])
def test_metadata_may_lie_beside_the_clips(output: Path, folder: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.mktemp("beside")
    (source / folder).mkdir(exist_ok=True)
    for number in (1, 2):
        (source / folder / f"{NAMES[number]}.mp4").write_bytes(b"x")
        (source / folder / f"{NAMES[number]}.json").write_text(json.dumps(clip_metadata(number)))
    (source / folder / f"{NAMES[3]}.mp4").write_bytes(b"x")
    records, passed = listed(source, "where=motion_score > 0.15")
    assert [(record.key, record.extra) for record in records] == [(NAMES[2], clip_metadata(2))]
    assert passed == {"clips without metadata": 1, "clips that `where` leaves out": 1}


def test_a_file_is_no_output_folder(output: Path) -> None:
    with pytest.raises(IngestError, match=r"notes\.txt: not a folder"):
        listed(output / "clips" / "notes.txt")


def test_a_field_that_no_clip_has_is_misspelled(output: Path) -> None:
    with pytest.raises(IngestError, match=r"no clip has a field 'captoin' .*fields=source_video,captoin"):
        listed(output, "fields=source_video,captoin")


def test_the_kept_clips_with_their_metadata(output: Path) -> None:
    records, passed = listed(output)
    assert [record.key for record in records] == NAMES[:4]
    assert [record.path for record in records] == [output / "clips" / f"{name}.mp4" for name in NAMES[:4]]
    assert records[1].extra == clip_metadata(1) and records[1].label is None
    assert passed == {"clips without metadata": 1, "other files (.txt)": 1}
    assert numbers(output, "clips=filtered") == [4] and numbers(output, "clips=all") == [0, 1, 2, 3, 4]
    (record, *_), _ = listed(output, "fields=source_video, aesthetic_score")
    assert record.extra == {"source_video": "/in/long.mp4"}
    assert listed(output, "fields=none")[0][0].extra is None


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("motion_score > 0.1", [2, 3]),
        ("motion_score.global_mean>=0.1", [1, 2, 3]),
        ("motion_score>0.1 and aesthetic_score >= 3", [3]),
        ("aesthetic_score != null and aesthetic_score < 2.5", [2]),
        ("aesthetic_score == null", [0, 1]),
        ("not valid", [3]),
        ("not (valid and width_source == 1280) and not valid or motion_score == 0", [0, 3]),
        ("0.1 <= motion_score < 0.3", [1, 2]),
        ("width_source in (1920, 640)", [1, 3]),
        ("windows.0.qwen_caption == 'caption 2'", [2]),
        ('source_video < "/j" and duration_span.1 > 3e1', [3]),
        ("true", [0, 1, 2, 3]),
        ("valid == true and valid != 1", [0, 1, 2]),
    ],
)
def test_conditions_choose_clips(output: Path, where: str, expected: list[int]) -> None:
    records, passed = listed(output, f"where={where}")
    assert [NAMES.index(record.key) for record in records] == expected
    assert passed["clips that `where` leaves out"] == 4 - len(expected)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("motion_scor == 0.3", r"metas/v0/.*0\.json: there is no field 'motion_scor', only .*motion_score"),
        ("motion_scor != 0.3", r"there is no field 'motion_scor'"),
        ("motion_scor in (1, 2)", r"there is no field 'motion_scor'"),
        ("source_video == long", r"there is no field 'long'"),
        ("motion_score > '3'", r"0\.json: 0\.0 > '3': neither two numbers nor two texts"),
        ("motion_scor > 0.3", r"metas/v0/.*0\.json: there is no field 'motion_scor', only .*motion_score"),
        ("aesthetic_score > 1", r"0\.json: there is no field 'aesthetic_score'.*aesthetic_score != null and"),
        ("windows > 1", "neither two numbers nor two texts"),
        ("source_video > 1", "'/in/long.mp4' > 1.0: neither two numbers"),
        ("width_source", "1280.* is neither true nor false"),
        ("width_source and valid", "1280.* is neither true nor false"),
        ("valid > 0", "neither two numbers"),
        ("motion_score = 0.3", r"where='motion_score = 0.3': character 14: '= 0.3' is not understood"),
        ("motion_score >", "it ends too early"),
        ("", "it ends too early"),
        ("(valid", "it ends too early"),
        ("valid)", r"unexpected '\)' at character 6"),
        ("valid valid", "unexpected 'valid' at character 7"),
        ("and valid", "unexpected 'and' at character 1"),
        ("width_source in 1280", "unexpected '1280' at character 17"),
        ("__import__('os').system('true')", "unexpected '\\('"),
        ("1 2", "unexpected '2' at character 3"),
        ("0x10 > 1", "character 1: '0x10 > 1' is not understood"),
        ("'open > 1", "is not understood"),
        ("(" * 100 + "valid" + ")" * 100, "nested too deeply"),
        ("not " * 100 + "valid", "nested too deeply"),
        ("valid" + " or valid" * 2000, "longer than"),
    ],
)
def test_a_condition_that_cannot_be_understood_is_one_line(output: Path, where: str, says: str) -> None:
    with pytest.raises(RhofastError, match=says) as caught:
        listed(output, f"where={where}")
    assert "\n" not in str(caught.value)


OPERANDS = st.sampled_from(["a", "b", "0.5", "2", "-1"])
COMPARISONS = st.builds(" ".join, st.tuples(OPERANDS, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), OPERANDS))
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("{} or {}".format, inner, inner),
        st.builds("not ({})".format, inner),
        st.builds("{} and {}".format, inner, inner),
    ),
    max_leaves=8,
)


@given(CONDITIONS, st.sampled_from([-1, 0, 0.5, 2]), st.sampled_from([-1, 0, 0.5, 2]))
def test_conditions_mean_what_python_means(text: str, a: float, b: float) -> None:
    load_recipe("curator")
    from _where import Where

    assert Where(text)({"a": a, "b": b}, "here") == eval(text, {}, {"a": a, "b": b})


def test_labels_come_from_a_field(output: Path) -> None:
    (output / "names.txt").write_text("rest\nrun\n")
    for number in range(4):
        content = clip_metadata(number, action={"name": "run" if number else "rest"})
        (output / "metas/v0" / f"{NAMES[number]}.json").write_text(json.dumps(content))
    records, _ = listed(output, "label=action.name", f"classes={output / 'names.txt'}")
    assert [record.label for record in records] == [0, 1, 1, 1]
    with pytest.raises(IngestError, match=r"0\.json: there is no field 'actio'"):
        listed(output, "label=actio")
    (output / "metas/v0" / f"{NAMES[2]}.json").write_text(json.dumps(clip_metadata(2, action={"name": -1})))
    options = ["label=action.name", f"classes={output / 'names.txt'}"]
    with pytest.raises(IngestError, match=r"\.json: label -1 is below 0.*--option unlabeled=-1"):
        listed(output, *options)
    assert [record.label for record in listed(output, *options, "unlabeled=-1")[0]] == [0, 1, None, 1]


def test_what_is_wrong_with_a_folder_or_its_metadata_is_one_line(output: Path, tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="there is no folder metas/v0"):
        listed(output / "clips")
    meta = output / "metas/v0" / f"{NAMES[1]}.json"
    for content, says in (
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"a": NaN}', "not a finite number"),
    ):
        meta.write_text(content)
        with pytest.raises(IngestError, match=f"{NAMES[1]}.json: .*{says}") as caught:
            listed(output)
        assert "\n" not in str(caught.value)
    meta.write_text(json.dumps({"caption": "x" * (64 << 10)}))
    with pytest.raises(IngestError, match=f"{NAMES[1]}.json: .*extra has"):
        listed(output)
    assert len(listed(output, "fields=source_video")[0]) == 4
