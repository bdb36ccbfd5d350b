"""Damaged variants of real files: no crash, no hang, and nothing taken whose pictures are damaged.

A variant about which ffmpeg complains is taken only if it decodes to the pictures of the undamaged file, each and all.

RHOFAST_DAMAGED says how many variants to try (default: a few dozen; 1000 take some minutes).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.format.dataset import open_folder
from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest.build import BuildSettings, build_shards
from rhofast.ingest.executors import LocalProcesses
from rhofast.ingest.listing import Listing
from rhofast.ingest.probe import Refusal
from rhofast.ingest.transcode import TranscodeSettings, find_ffmpeg
from rhofast.ingest.verify import verify_shards
from tests.helpers.shards import REAL_VIDEOS

SOURCES = ("lowfps_6.mp4", "ucf_style.avi", "nasa.mp4", "pancake.mkv", "bikes.mp4")
KINDS = ("bit flips", "cut", "spliced", "zeroed", "header flips")
COUNT = int(os.environ.get("RHOFAST_DAMAGED", "60"))

pytestmark = pytest.mark.skipif(
    not all((REAL_VIDEOS / name).exists() for name in SOURCES), reason="needs the real videos"
)


def damaged(content: bytes, other: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """A variant of a file's bytes."""
    data = np.frombuffer(content, dtype=np.uint8).copy()
    size = len(data)
    if kind == "bit flips":
        for place in rng.integers(0, size, rng.integers(1, 64)):
            data[place] ^= np.uint8(1 << rng.integers(8))
    elif kind == "header flips":
        for place in rng.integers(0, min(size, 4096), rng.integers(1, 8)):
            data[place] ^= np.uint8(1 << rng.integers(8))
    elif kind == "zeroed":
        start = int(rng.integers(0, size))
        data[start : start + int(rng.integers(16, 65536))] = 0
    elif kind == "cut":
        data = data[: int(rng.integers(0, size))]
    elif kind == "spliced":
        start, place = int(rng.integers(0, size)), int(rng.integers(0, len(other)))
        piece = np.frombuffer(other, dtype=np.uint8)[place : place + int(rng.integers(16, 65536))]
        data = np.concatenate([data[:start], piece, data[start + len(piece) :]])
    return data.tobytes()


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> list[VideoRecord]:
    folder, rng = tmp_path_factory.mktemp("damaged"), np.random.default_rng(2104)
    contents = {name: (REAL_VIDEOS / name).read_bytes()[: 1 << 21] for name in SOURCES}
    records = []
    for number in range(COUNT):
        name, kind = SOURCES[number % len(SOURCES)], KINDS[number // len(SOURCES) % len(KINDS)]
        other = contents[SOURCES[(number + 1) % len(SOURCES)]]
        path = folder / f"{number:04d}-{kind.replace(' ', '-')}-{name}"
        path.write_bytes(damaged(contents[name], other, kind, rng))
        records.append(VideoRecord(key=f"v{number:04d}", path=path))
    return records


def decoded(path: Path) -> tuple[str, list[str]]:
    """What ffmpeg says when it decodes the video, and nothing else; and the checksum of each picture."""
    command = [find_ffmpeg(), "-nostdin", "-v", "error", "-i", f"file:{path}", "-map", "0:v:0", "-f", "framemd5", "-"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)
    pictures = [line.rpartition(",")[2].strip() for line in done.stdout.splitlines() if not line.startswith("#")]
    return done.stderr or (f"exit code {done.returncode}" if done.returncode else ""), pictures


def test_damaged_pictures_are_refused_unless_ffmpeg_does_not_see_it(
    variants: list[VideoRecord], tmp_path: Path
) -> None:
    settings = BuildSettings(
        name="damaged",
        split="all",
        codec=JpegCodec(quality=8),
        transcode=TranscodeSettings(short_side=32, fps=2, timeout=60),
        samples_per_shard=8,
    )
    with Listing(variants) as listing:
        try:
            info = build_shards(listing, tmp_path / "set", settings, LocalProcesses(2))
        except IngestError as error:
            pytest.fail(f"the build did not end well: {error}")
    assert info is not None
    lines = [json.loads(line) for line in (tmp_path / "set" / "refused.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in lines} <= set(Refusal)
    refused = {line["key"] for line in lines}
    shards = open_folder(tmp_path / "set")
    stored = {shards.row(sample).key for sample in range(len(shards))}
    assert stored | refused == {record.key for record in variants} and not stored & refused
    assert not list(verify_shards(shards))
    whole = {}
    for name in SOURCES:
        (tmp_path / name).write_bytes((REAL_VIDEOS / name).read_bytes()[: 1 << 21])
        whole[name] = decoded(tmp_path / name)[1]
    for record in variants:
        if record.key in stored:
            said, pictures = decoded(record.path)
            name = record.path.name.rpartition("-")[2]
            assert not said or pictures == whole[name], f"{record.path.name}: taken although ffmpeg says {said}"
