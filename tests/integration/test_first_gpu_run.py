"""The GPU measurements, without a GPU: a crash or a hang costs one part alone, and archives hold what is missing."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu.packages import CUBIN, LIMIT, groups, keep_one_architecture, lacks, read_list
from benchmarks.gpu.run import PLANS
from benchmarks.gpu.sets import repeat
from rhofast.data.format.dataset import ShardSet, open_folder
from tests.helpers.shards import ROOT

# Parts that end in every way that there is: well, by an exception, by a crash, never.
SCRIPT = """
import os, signal, sys, time
from benchmarks.gpu import run

def good(part):
    part.say("MET: one 1.000, limit 2.000")
    part.results["one"] = 1

def raising(part):
    part.say("before")
    raise ValueError("no such decoder")

def crash(part):
    part.say("lost with the process")
    os.kill(os.getpid(), signal.SIGSEGV)

def hang(part):
    part.results["two"] = 2
    time.sleep(60)

kinds = {"smoke": good, "crash": crash, "hang": hang, "raising": raising, "last": good}
run.PLANS.clear()
run.PLANS.update({name: run.Plan(run=kind, estimate_s=0, limit_s=60) for name, kind in kinds.items()})
done = os.listdir(sys.argv[3])
run.REHEARSAL_LIMIT_S = 0.2 if "crash.json" in done and "hang.json" not in done else 60.0
run.main()
"""


def start(out: Path, *options: str) -> int:
    (out / "sets").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", SCRIPT, str(out), "--out", str(out), "--cpu", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120).returncode


def test_a_crash_and_a_hang_cost_one_part_each(tmp_path: Path) -> None:
    codes = [start(tmp_path) for _ in range(3)]
    assert codes == [-11, 3, 0]  # the crash; the part that exceeded its limit; the rest
    reports = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("smoke", "crash", "hang", "last")}
    assert reports["smoke"]["ok"] and reports["last"]["ok"] and reports["last"]["results"] == {"one": 1}
    assert "crashed or was killed" in reports["crash"]["error"] and not reports["crash"]["ok"]
    assert reports["hang"]["error"] == "more than 0.2 s" and reports["hang"]["results"] == {"two": 2}
    raising = json.loads((tmp_path / "raising.json").read_text())
    assert raising["error"] == "ValueError: no such decoder" and raising["lines"] == ["before"]
    assert start(tmp_path, "--summary") == 0
    summary = (tmp_path / "summary.md").read_text()
    assert summary.count("- MET: one") == 2 and "## crash: NOT OK" in summary and "## last: ok" in summary


def test_the_estimate_is_below_six_minutes() -> None:
    assert sum(plan.estimate_s for plan in PLANS.values() if not plan.optional) < 360
    assert all(plan.estimate_s < plan.limit_s for plan in PLANS.values())


def test_a_repeated_set_holds_the_same_videos_again(shards: ShardSet, tmp_path: Path) -> None:
    repeat(shards.root, tmp_path / "more", 3 * len(shards) - 1)
    more = open_folder(tmp_path / "more")
    assert len(more) == 3 * len(shards)
    assert more.index(len(shards.info.shards)).key(0) == shards.index(0).key(0)


@given(st.dictionaries(st.text(min_size=1), st.integers(0, LIMIT)))
def test_archives_hold_everything_once_within_the_limit(sizes: dict[str, int]) -> None:
    found = groups(sizes)
    assert sorted(name for names in found for name in names) == sorted(sizes)
    assert all(sum(sizes[name] for name in names) <= LIMIT for names in found)


def test_what_exceeds_an_archive_is_named() -> None:
    with pytest.raises(SystemExit, match="big: 61"):
        groups({"big": 61 << 20})


def entry(kind: int, architecture: int, code: bytes) -> bytes:
    return struct.pack("<HHIQ12xI", kind, 1, 64, len(code), architecture) + bytes(32) + code


def test_one_architecture_is_kept_and_the_layout_stays(tmp_path: Path) -> None:
    code = {90: b"n" * 96, 80: b"e" * 160, 0: b"p" * 64}
    entries = entry(CUBIN, 80, code[80]) + entry(CUBIN, 90, code[90]) + entry(1, 90, code[0])
    bundle = struct.pack("<4sHHQ", b"\x50\xed\x55\xba", 1, 16, len(entries)) + entries
    library = tmp_path / "lib.so"
    before = b"ELF" + b"\x50\xed\x55\xba" + b"no bundle at all" + bundle + b"tail" + bundle
    library.write_bytes(before)
    assert keep_one_architecture(library, 90) == 2 * (160 + 64)
    after = library.read_bytes()
    assert len(after) == len(before) and after.endswith(bytes(64)) and b"tail" in after
    assert after.count(code[90]) == 2 and code[80] not in after and code[0] not in after
    assert after.replace(b"\0", b"") == before.replace(code[80], b"").replace(code[0], b"").replace(b"\0", b"")


def test_the_list_of_a_machine(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("torch==2.11.0+cu130\nTyping_Extensions==4.12.0\nrich\n# a comment\n\npyarrow==20.0.0\n")
    has = read_list(path)
    assert has == {"torch": "2.11.0", "typing-extensions": "4.12.0", "rich": None, "pyarrow": "20.0.0"}
    carried = {"torch": "2.11.0", "rich": "14.0", "pyarrow": "21.0.0", "typing_extensions": "4.16.0", "av": "16.0"}
    needed = [name for name, version in carried.items() if lacks(has, {"name": name, "version": version})]
    assert needed == ["pyarrow", "typing_extensions", "av"]
