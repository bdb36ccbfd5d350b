"""The fields of the user's own in a set: counted by name and type, in memory that does not grow with the set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rhofast.cli.app import app
from rhofast.data.format.sample_json import SampleJson
from rhofast.ingest import extra_fields
from rhofast.ingest.extra_fields import FieldsFound, FieldUse, find_fields
from tests.helpers.shards import write_shards

EXTRA: list[dict[str, Any] | None] = [
    {"caption": "a cat", "score": 1, "[b]": None},
    {"caption": "a dog", "score": 0.5},
    None,
    {"caption": "a cat", "score": True, "boxes": [[0, 1]]},
    {"caption": "x" * 100, "tags": {"a": 1}},
]


def test_fields_are_counted_by_name_and_type(members: list[bytes], tmp_path: Path) -> None:
    found = find_fields(write_shards(tmp_path / "s", members[:5], extra=EXTRA, per_shard=2))
    assert (found.total, found.read, found.without, found.others, found.bad) == (5, 5, 1, 0, 0)
    assert list(found.fields) == ["caption", "score", "[b]", "boxes", "tags"]
    assert found.fields["caption"] == FieldUse(
        samples=4, types=extra_fields.Counter(text=4), examples=['"a cat"', '"a dog"', f'"{"x" * 56}...']
    )
    assert found.fields["score"].types == {"integer": 1, "number": 1, "boolean": 1}
    assert found.fields["[b]"].types == {"null": 1} and found.fields["tags"].types == {"object": 1}
    assert found.fields["boxes"].examples == ["[[0, 1]]"]


def test_a_sample_of_a_large_set_is_read_unless_all_are_asked_for(
    members: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(tmp_path / "s", members, extra=[{"n": number} for number in range(13)], per_shard=2)
    monkeypatch.setattr(extra_fields, "SAMPLED", 4)
    monkeypatch.setattr(extra_fields, "_SHARDS", 2)
    read: list[int] = []
    monkeypatch.setattr(extra_fields.Reader, "read_json", lambda self, sample: (read.append(sample), SampleJson())[1])
    assert find_fields(shards).read == 3  # of the first shard and of the last, which has one sample
    assert sorted(read) == [0, 1, 12]
    seen: list[tuple[int, int]] = []
    found = find_fields(shards, every=True, on_read=lambda done, total: seen.append((done, total)))
    assert (found.read, sorted(read[3:]), seen[-1]) == (13, list(range(13)), (13, 13))


def test_names_without_end_are_counted_together() -> None:
    found = FieldsFound(total=5_000)
    for number in range(5_000):
        found.add({f"f{number}": number, "g": 1})
    assert len(found.fields) == 1_000 and found.others == 4_001
    assert found.fields["g"].samples == 5_000 and found.fields["g"].examples == ["1"]


def test_inspect_lists_them_and_says_how_many_samples_were_read(members: list[bytes], tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", members[:5], extra=EXTRA)
    path = tmp_path / "s/shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[shards.row(3).json_offset] ^= 1
    path.write_bytes(content)
    wide = {"COLUMNS": "200"}
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "s"), "--fields"], env=wide)
    assert result.exit_code == 0, result.output
    text = " ".join(re.sub(r"[\u2500-\u257f]", " ", result.output).split())
    assert "caption 3 text" in text and "[b] 1 null null" in text and "integer: 1, number: 1" in text
    assert "Read: all 5 samples. Without any field: 1. Not readable: 1, the first one: KEY.json: " in text
    assert "KEY.json: checksum mismatch [shard-000000.tar, key 'v3'" in text
    plain = CliRunner().invoke(app, ["inspect", str(tmp_path / "s")], env=wide)
    assert plain.exit_code == 0 and "caption" not in plain.output
