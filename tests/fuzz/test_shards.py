"""Shard sets of strangers: whatever is in their files is an error of one line, or works."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.hostile_shards import honest, hostile_content, hostile_description, hostile_files, hostile_index
from tests.fuzz.mutations import Rng, mutate_bytes, mutate_json

READERS = "tests.fuzz.readers"
Fuzz = Callable[..., None]


def test_any_dataset_json_is_parsed_or_refused(fuzz: Fuzz) -> None:
    values = json.loads((honest("jpeg") / "dataset.json").read_text())
    fuzz(f"{READERS}:parse", lambda rng, _: mutate_json(rng, values), cases=200)


@pytest.mark.parametrize(
    ("make", "cases"),
    [(hostile_index, 200), (hostile_description, 40), (hostile_files, 40)],
    ids=["index", "dataset", "files"],
)
def test_any_set_opens_or_is_refused(make: Callable[[Rng, Path], Path], cases: int, fuzz: Fuzz) -> None:
    fuzz(f"{READERS}:rows", make, cases=cases)


@pytest.mark.parametrize(
    ("make", "cases"),
    [(hostile_index, 8), (hostile_content, 4), (hostile_files, 6)],
    ids=["index", "content", "files"],
)
def test_commands_survive_any_set(make: Callable[[Rng, Path], Path], cases: int, fuzz: Fuzz) -> None:
    fuzz(f"{READERS}:commands", make, cases=cases, seconds=40, warm=honest("jpeg"))


def test_any_tar_is_listed_or_refused(fuzz: Fuzz) -> None:
    content = (honest("jpeg") / "shard-000000.tar").read_bytes()

    def make(rng: Rng, folder: Path) -> Path:
        (folder / "a.tar").write_bytes(mutate_bytes(rng, content[:512]) + mutate_bytes(rng, content[512:]))
        return folder / "a.tar"

    fuzz(f"{READERS}:tar", make, cases=100)
