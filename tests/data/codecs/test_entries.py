"""Decoding that begins at an entry, without its leading pictures, gives the pictures of the whole stream."""

from __future__ import annotations

import io
import re
import subprocess
from functools import cache
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from rhofast.data.codecs.containers import open_container
from rhofast.data.codecs.entries import UNKNOWN, Entries, EntryFinder, recovers, restarts
from rhofast.ingest.transcode import find_ffmpeg

NUM_FRAMES = 70
FORCED = "bframes=4:keyint=15:min-keyint=15:scenecut=0:b-adapt=0"
# Encoders, and whether they make closed entries, open ones, and such whose leading pictures others may refer to.
STREAMS: dict[str, tuple[str, str, tuple[bool, bool, bool]]] = {
    "h264 closed": ("mp4", "libx264 -g 12 -bf 2", (True, False, False)),
    "h264 open": ("matroska", f"libx264 -x264-params {FORCED}:open-gop=1:b-pyramid=none", (False, True, False)),
    "h264 open ts": ("mpegts", f"libx264 -x264-params {FORCED}:open-gop=1:b-pyramid=none", (False, True, False)),
    "h264 pyramid": ("mp4", f"libx264 -x264-params {FORCED}:open-gop=1:b-pyramid=normal", (False, False, True)),
    "h264 refresh": ("mp4", "libx264 -x264-params intra-refresh=1:keyint=12", (False, False, False)),
    "hevc open": ("mp4", f"libx265 -x265-params log-level=0:pools=none:{FORCED}", (False, True, False)),
    "hevc open ts": ("mpegts", f"libx265 -x265-params log-level=0:pools=none:{FORCED}", (False, True, False)),
    "hevc closed": ("mp4", f"libx265 -x265-params log-level=0:pools=none:open-gop=0:{FORCED}", (True, False, False)),
    "mpeg2": ("mpegts", "mpeg2video -g 12 -bf 2", (False, True, False)),
    "mpeg4": ("matroska", "mpeg4 -g 12 -bf 2", (False, True, False)),
    "vp9": ("webm", "libvpx-vp9 -g 12 -deadline realtime -cpu-used 8", (True, False, False)),
}


@cache
def encoded(name: str) -> bytes:
    form, encoder, _ = STREAMS[name]
    form += " -movflags frag_keyframe+empty_moov" * (form == "mp4")
    pictures = f"-f lavfi -i testsrc2=size=96x64:rate=25 -frames:v {NUM_FRAMES} -vf noise=alls=20:allf=t".split()
    more = f"-pix_fmt yuv420p -c:v {encoder} -threads 1 -f {form} pipe:".split()
    command = [find_ffmpeg(), "-loglevel", "error", *pictures, *more]
    return subprocess.run(command, check=True, capture_output=True).stdout


def told(times: list[int | None]) -> np.ndarray:
    return np.array([UNKNOWN if time is None else time for time in times], dtype=np.int64)


def packets_of(content: bytes) -> tuple[list[Any], np.ndarray, Entries]:
    with open_container(io.BytesIO(content), mp4=False) as container:
        stream = container.streams.video[0]
        finder = EntryFinder(stream.codec_context)
        packets = [packet for packet in container.demux(stream) if packet.size]
        for packet in packets:
            finder.add(packet)
        times = finder.times(told([packet.pts for packet in packets]))
        assert times is not None
        return packets, times, finder.find(times)


def decoded(content: bytes, packets: list[Any]) -> dict[int, bytes]:
    with open_container(io.BytesIO(content), mp4=False) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        frames = [frame for packet in [*packets, None] for frame in stream.codec_context.decode(packet)]
    return {frame.pts: frame.to_ndarray().tobytes() for frame in frames}


@pytest.mark.parametrize("name", STREAMS)
def test_every_picture_from_an_entry_on_is_the_right_one(name: str) -> None:
    content = encoded(name)
    packets, times, entries = packets_of(content)
    whole = decoded(content, packets)
    assert entries.closed[0] and len(whole) == NUM_FRAMES
    found = tuple(bool(kind[1:].any()) for kind in (entries.closed, entries.open, entries.gap))
    assert found == STREAMS[name][2]
    for place in np.flatnonzero(entries.any | entries.gap).tolist():
        kept = [packet for packet, time in zip(packets[place:], times[place:], strict=True) if time >= times[place]]
        expected = {time: picture for time, picture in whole.items() if time >= times[place]}
        assert decoded(content, kept) == expected


def test_parameter_sets_that_changed_have_to_come_along() -> None:
    """Of two streams one behind the other, the second has other parameter sets, which only its first picture brings."""
    command = f"{find_ffmpeg()} -loglevel error -f lavfi -i testsrc2=size=96x64:rate=25:duration=1 -c:v libx264 -g 8"
    commands = [f"{command} -bf 0 -x264-params cabac={cabac} -f h264 pipe:".split() for cabac in (1, 0)]
    made = [subprocess.run(each, check=True, capture_output=True).stdout for each in commands]
    units = re.split(rb"(?=\x00\x00\x00\x01|(?<!\x00)\x00\x00\x01)", made[1])
    sets = [place for place, unit in enumerate(units) if unit and unit[unit.index(b"\x01") + 1] & 31 in (7, 8)]
    assert len(sets) >= 6
    spared = b"".join(unit for place, unit in enumerate(units) if place not in sets[2:])
    for second, count in ((made[1], 8), (spared, 5)):  # all eight groups; those of the first stream and one
        with av.open(io.BytesIO(made[0] + second), format="h264") as container:
            finder = EntryFinder(container.streams.video[0].codec_context)
            packets = [packet for packet in container.demux(video=0) if packet.size]
        for packet in packets:
            finder.add(packet)
        assert int(finder.find(np.arange(len(packets))).closed.sum()) == count


@pytest.mark.parametrize(
    ("message", "exact"),
    [(b"\x06\x01\xc4", True), (b"\x06\x01\x84", False), (b"\x06\x01\x54", False), (b"\x05\x02ab\x06\x01\xc4", True)],
    ids=["exact", "nearly", "later", "second message"],
)
def test_only_exact_points_of_recovery_count(message: bytes, exact: bool) -> None:
    class Content(bytes):
        is_keyframe = True

    start = b"\x00\x00\x01"
    decoder = SimpleNamespace(codec=SimpleNamespace(canonical_name="h264"), extradata=b"")
    packet = Content(
        start + b"\x06" + message + b"\x80" + start + b"\x65\x88\x84\x00"[:1].replace(b"\x65", b"\x61") + b"x"
    )
    assert recovers(decoder, packet) == exact and not restarts(decoder, packet)


def test_times_of_pictures_that_nobody_can_decode_may_be_missing() -> None:
    finder = EntryFinder(SimpleNamespace(codec=SimpleNamespace(canonical_name="hevc"), extradata=b""))

    class Content(bytes):
        is_keyframe = True

    for kind in (21, 8, 9, 1, 9):  # a random access point, two pictures that are skipped behind it, others
        finder.add(Content(b"\x00\x00\x01" + bytes([kind << 1, 1]) + b"xyz"))
    times = finder.times(told([100, None, 90, 200, 150]))
    assert times is not None and times.tolist() == [100, 89, 90, 200, 150]
    assert finder.find(times).undecodable(times).tolist() == [False, True, True, False, False]
    assert finder.times(told([100, None, 90, 200, None])) is None
    assert finder.times(told([None, 80, 90, 200, 150])) is None
