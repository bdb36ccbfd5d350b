"""The harness notices what it is there for."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from rhofast.errors import ShardFormatError
from rhofast.storage.strict_json import parse_record
from tests.fuzz.harness import Worker, run_cases
from tests.fuzz.mutations import mutate_json


def misbehave(path: Path) -> None:
    what = path.read_text()
    if what == "refuse":
        raise ShardFormatError("a bad file")
    if what == "fail":
        raise KeyError("x")
    if what == "exit":
        raise SystemExit(0)
    if what == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        time.sleep(60)
    if what == "large":
        np.ones(9 << 30, dtype=np.uint8)


FAILURES = {
    "fine": None,
    "refuse": None,
    "die": "status -11",
    "fail": "KeyError",
    "exit": "SystemExit",
    "hang": "not done after 1 s",
    "large": "MemoryError",
    "fine again": None,
}


def test_each_fault_is_reported_with_its_seed_and_file_and_the_next_case_runs(tmp_path: Path) -> None:
    words = list(FAILURES)

    def make(rng: np.random.Generator, folder: Path) -> Path:
        (folder / "case").write_text(words[int(folder.name)])
        return folder / "case"

    worker = Worker(imports=())
    reader, seeds = "tests.fuzz.test_harness:misbehave", range(len(words))
    failures = run_cases(worker, reader, make, seeds=seeds, folder=tmp_path, seconds=1)
    worker.close()
    found = {(case.case / "case").read_text(): case for case in failures}
    assert list(found) == [word for word, text in FAILURES.items() if text is not None]
    assert all(str(FAILURES[word]) in case.what and case.seed == words.index(word) for word, case in found.items())


VALUES = {"items": [{"name": "a", "size": 1, "nested": {"x": [1.5, None]}}], "flag": True}


def parse(content: bytes) -> object:
    return parse_record(content, dict[str, object], where="case", raises=ShardFormatError)


def test_spoiled_values_are_drawn_from_the_seed_alone() -> None:
    texts = [[mutate_json(np.random.default_rng(seed), VALUES) for seed in range(50)] for _ in range(2)]
    assert texts[0] == texts[1] and len(set(texts[0])) > 40


def test_json_of_any_kind_is_parsed_or_refused(fuzz) -> None:  # type: ignore[no-untyped-def]
    fuzz("tests.fuzz.test_harness:parse", lambda rng, _: mutate_json(rng, VALUES), cases=300)
