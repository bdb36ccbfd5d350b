"""Damaged videos are stored by `remux` only where ffmpeg finds nothing wrong with their pictures, either."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from rhofast.data.codecs.remux import RemuxCodec
from rhofast.data.codecs.unfit import UnfitError
from rhofast.ingest.ffmpeg_messages import LOG_LEVEL, pictures_are_whole, read_messages
from rhofast.ingest.machine_errors import UnreadableError
from rhofast.ingest.probe import RefusedError, probe
from rhofast.ingest.remux import remux
from rhofast.ingest.transcode import find_ffmpeg
from tests.fuzz.hostile_shards import scratch_folder
from tests.fuzz.mutations import Rng, choose, mutate_bytes

# Encoders, and containers that lay packets out in different ways.
KINDS = {
    "mp4": "libx264 -g 10 -bf 2 -x264-params open-gop=0",
    "mkv": "libx265 -x265-params keyint=10:bframes=2:open-gop=0:log-level=error",
    "ts": "libx264 -g 10 -bf 2",
    "webm": "libvpx-vp9 -g 10 -deadline realtime -cpu-used 8",
}


@cache
def honest(suffix: str) -> bytes:
    path = Path(scratch_folder()) / f"source.{suffix}"
    pictures = "-f lavfi -i testsrc2=size=160x96:rate=25 -frames:v 30 -pix_fmt yuv420p"
    command = f"-loglevel error -y {pictures} -threads 1 -c:v {KINDS[suffix]}".split()
    subprocess.run([find_ffmpeg(), *command, str(path)], check=True)
    return path.read_bytes()


def make_video(rng: Rng, folder: Path) -> Path:
    """A video with a few wrong bytes, one that is cut short, or one with a piece missing or doubled."""
    suffix = choose(rng, tuple(KINDS))
    content, kind = honest(suffix), rng.random()
    if kind < 0.6:
        damaged = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            begin, size = int(rng.integers(len(content))), int(rng.integers(1, 200))
            damaged[begin : begin + size] = rng.bytes(len(damaged[begin : begin + size]))
        content = bytes(damaged)
    elif kind < 0.8:
        content = content[: int(rng.integers(1, len(content)))]
    else:
        content = mutate_bytes(rng, content)
    path = folder / f"video.{suffix}"
    path.write_bytes(content)
    return path


def store(path: Path) -> None:
    """Store a video; if it is taken, ffmpeg must find nothing wrong with its pictures."""
    try:
        source = probe(path)
        for check in ("keys", "full"):
            member = remux(path, source, RemuxCodec(check=check), (None, None), path.with_name("member"))
    except (RefusedError, UnfitError, UnreadableError):
        return
    command = [find_ffmpeg(), "-nostdin", "-hide_banner", "-nostats", "-loglevel", LOG_LEVEL, "-threads", "1"]
    command += ["-i", f"file:{path}", "-map", f"0:{source.stream}", "-f", "null", "-"]
    done = subprocess.run(command, capture_output=True)
    said = read_messages(done.stderr, source)
    assert not said.damage, said.damage
    assert not said.doubt or pictures_are_whole(path, source), said.doubt
    with path.with_name("member").open("rb") as file:
        assert RemuxCodec().index_member(file, deep=True).num_frames >= member.num_frames > 0


@pytest.mark.parametrize("cases", [60])
def test_a_damaged_video_is_refused_where_ffmpeg_would(fuzz, cases: int) -> None:  # type: ignore[no-untyped-def]
    fuzz("tests.fuzz.test_remux:store", make_video, cases=cases)


def test_most_damage_is_found(tmp_path: Path) -> None:
    taken, rng = 0, np.random.default_rng(0)
    for number in range(20):
        (tmp_path / f"{number}").mkdir()
        path = make_video(rng, tmp_path / f"{number}")
        try:
            remux(path, probe(path), RemuxCodec(), (None, None), path.with_name("member"))
            taken += 1
        except (RefusedError, UnfitError):
            continue
    assert taken <= 10
