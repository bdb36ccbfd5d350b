"""The machine's trouble is not the video's: what ffmpeg, PyAV and the system say of disks stops or retries."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest import source as sources
from rhofast.ingest import store
from rhofast.ingest.isolation import IsolatedProcess
from rhofast.ingest.machine_errors import UnreadableError, check_ffmpeg, check_library_error
from rhofast.ingest.probe import Refusal, RefusedError
from rhofast.ingest.sample import make_sample
from rhofast.ingest.source import Deadline, ReadingTrouble, Source, check_unchanged, read_source, retried
from rhofast.ingest.transcode import TranscodeSettings, find_ffmpeg
from tests.helpers.shards import encode_mjpeg, frame_pixels

IN, OUT = Path("/in/video.mp4"), Path("/out/.job-000000.tmp/member")
WRITING = ["ENOSPC", "EDQUOT", "EIO", "EROFS", "ESTALE", "EFBIG"]


def ffmpeg_says(text: str, *, code: int = 1) -> None:
    check_ffmpeg(text.encode(), code, source=IN, out=OUT)


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize(
    "line",
    [
        "[vost#0:0/mjpeg @ 0x5] Error submitting a packet to the muxer: {}",
        "[out#0/mp4 @ 0x5] Could not write header (incorrect codec parameters ?): {}",
        "[out#0/mp4 @ 0x5] Task finished with error code: -1 ({})",
        "av_interleaved_write_frame(): {}",
        "Error writing trailer of file:/out/.job-000000.tmp/member: {}",
    ],
)
def test_what_ffmpeg_cannot_write_is_an_error_of_the_system(name: str, line: str) -> None:
    number = getattr(errno, name)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        ffmpeg_says("[h264 @ 0x5] harmless\n" + line.format(os.strerror(number)))
    assert caught.value.errno == number and caught.value.filename == str(OUT.parent)


def test_a_limit_of_file_sizes_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="File too large"):
        ffmpeg_says("", code=-signal.SIGXFSZ)


@pytest.mark.parametrize("name", ["ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE"])
def test_what_ffmpeg_cannot_open_is_unreadable(name: str) -> None:
    words = os.strerror(getattr(errno, name))
    for line in (f"[in#0 @ 0x5] Error opening input: {words}", f"file:/in/video.mp4: {words}"):
        with pytest.raises(UnreadableError, match=words):
            ffmpeg_says(line)
    with pytest.raises(UnreadableError, match=words):
        check_library_error(OSError(getattr(errno, name), "PyAV"))


@pytest.mark.parametrize(
    "line",
    [
        "[in#0/avi @ 0x5] Error during demuxing: Input/output error",
        "[in#0/mov,mp4 @ 0x5] Error opening input: Cannot allocate memory",
        "[mov,mp4 @ 0x5] Cannot allocate memory",
        "[in#0/mov,mp4 @ 0x5] corrupt input packet in stream 0",
        "[out#0/mp4 @ 0x5] Nothing was written into output file, because streams received no packets.",
        "[vost#0:0/mjpeg @ 0x5] Error submitting a packet to the muxer: Invalid argument",
        "Error opening input file file:/in/video.mp4.",
    ],
)
def test_what_damaged_files_cause_as_well_is_not_the_machine_s(line: str) -> None:
    ffmpeg_says(line)
    check_library_error(OSError(errno.EIO, "PyAV"))
    check_library_error(ValueError("PyAV"))


def test_memory_or_threads_that_ffmpeg_cannot_get_are_no_damage() -> None:
    for line in (
        "[swscaler @ 0x5] Failed initializing scaling graph (Resource temporarily unavailable): fmt:yuv420p",
        "[vf#0:0 @ 0x5] Error reinitializing filters!: Cannot allocate memory",
    ):
        with pytest.raises(UnreadableError, match=r"unavailable|memory"):
            ffmpeg_says(line)


def test_a_file_that_is_named_after_an_error_does_not_cause_one() -> None:
    name = Path("/in/No space left on device.mp4")
    check_ffmpeg(f"file:{name}: Invalid data".encode(), 1, source=name, out=OUT)


def test_ffmpeg_s_own_words_are_the_ones_that_are_looked_for(tmp_path: Path) -> None:
    video = tmp_path / "x.mp4"
    video.write_bytes(encode_mjpeg([frame_pixels(0, frame) for frame in range(4)]))
    command = [find_ffmpeg(), "-loglevel", "error", "-xerror", "-y", "-i", f"file:{video}", "-f", "mp4"]
    done = subprocess.run([*command, "file:/dev/full"], capture_output=True)
    with pytest.raises(OSError, match="No space left on device"):
        check_ffmpeg(done.stderr, done.returncode, source=video, out=Path("/dev/full"))


# ---- reading ----


def test_a_source_is_read_as_a_whole_and_refused_for_what_it_is(tmp_path: Path) -> None:
    deadline = Deadline(60)
    (tmp_path / "a").write_bytes(b"content")
    source = read_source(tmp_path / "a", tmp_path, deadline)
    assert source.path == tmp_path / "a" and len(source.digest) == 16
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in {
        "none": Refusal.MISSING,
        "a/b": Refusal.MISSING,
        "loop": Refusal.MISSING,
        "empty": Refusal.EMPTY,
        "pipe": Refusal.NOT_A_VIDEO,
        ".": Refusal.NOT_A_VIDEO,
    }.items():
        with pytest.raises(RefusedError) as refused:
            read_source(tmp_path / name, tmp_path, deadline)
        assert refused.value.reason == reason, name


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOMEM", "EACCES"])
def test_an_error_of_the_system_in_reading_is_retried_and_then_a_reason_of_its_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"content")
    number, calls, left = getattr(errno, name), [], [1]

    def failing(descriptor: int, size: int) -> bytes:
        calls.append(descriptor)
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return b""

    monkeypatch.setattr(sources, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(sources.os, "read", failing)
    if name != "EACCES":  # one error is over at the second attempt: the file reads as empty here
        with pytest.raises(RefusedError) as refused:
            retried(lambda: sources._read_digest(tmp_path / "a"), Deadline(60))
        assert refused.value.reason == Refusal.EMPTY and len(calls) == 2
    left[0] = 9
    calls.clear()
    with pytest.raises(RefusedError) as refused:
        retried(lambda: sources._read_digest(tmp_path / "a"), Deadline(60))
    assert refused.value.reason == Refusal.UNREADABLE and refused.value.detail == os.strerror(number)
    assert len(calls) == (1 if name == "EACCES" else 3)


def test_a_refusal_holds_only_if_the_source_still_reads_the_same(tmp_path: Path) -> None:
    path, deadline = tmp_path / "a", Deadline(60)
    path.write_bytes(b"content")
    source = read_source(path, tmp_path, deadline)
    check_unchanged(source, RefusedError(Refusal.DAMAGED), deadline)
    path.write_bytes(b"contents")
    check_unchanged(source, RefusedError(Refusal.TOO_SHORT), deadline)
    with pytest.raises(UnreadableError, match="differently"):
        check_unchanged(source, RefusedError(Refusal.DAMAGED), deadline)
    path.unlink()
    with pytest.raises(UnreadableError, match="missing"):
        check_unchanged(source, RefusedError(Refusal.NO_FRAMES), deadline)
    with pytest.raises(RefusedError, match="timeout"):
        check_unchanged(Source(path, b""), RefusedError(Refusal.DAMAGED), Deadline(0))


def test_more_than_a_few_unreadable_sources_in_succession_stop_the_command() -> None:
    trouble, refusal = ReadingTrouble(), RefusedError(Refusal.UNREADABLE, "Input/output error")
    for _ in range(2):  # something between them begins the count anew
        for _ in range(3):
            trouble.note(IN, refusal)
        trouble.note(IN, RefusedError(Refusal.DAMAGED))
    for _ in range(3):
        trouble.note(IN, refusal)
    with pytest.raises(IngestError, match=r"/in/video.mp4: Input/output error; 4 sources in succession"):
        trouble.note(IN, refusal)


def test_a_killed_child_process_is_no_damage() -> None:
    guard = IsolatedProcess()
    try:
        with pytest.raises(IngestError, match="stopped"):
            guard.call(os.kill, guard.call(os.getpid, seconds=60), signal.SIGKILL, seconds=60)
    finally:
        guard.close()


def test_an_error_of_the_system_in_reading_by_ourselves_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="Is a directory"):
        sources.call_reader(Path.read_bytes, tmp_path, deadline=Deadline(60))


def test_a_video_that_misreads_once_is_stored_at_the_second_attempt(
    videos: list[VideoRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk gives wrong bytes to ffmpeg once: the refusal does not hold, since the file reads as before."""
    transcode, calls = store.transcode, list[Path]()

    def misread(path: Path, *arguments: Any, **options: Any) -> Path:
        made: Path = transcode(path, *arguments, **options)
        calls.append(made)
        if len(calls) == 1:
            raise UnreadableError("Stale file handle")
        return made

    monkeypatch.setattr(sources, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(store, "transcode", misread)
    sample = make_sample(videos[0], [JpegCodec()], TranscodeSettings(short_side=32), tmp_path)
    assert sample.member.num_frames == 4 and len(set(calls)) == 2 and sample.file == calls[1]


# ---- the whole command ----


@pytest.fixture
def videos(tmp_path: Path) -> list[VideoRecord]:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.mp4").write_bytes(encode_mjpeg([frame_pixels(number, frame) for frame in range(4)]))
    return [VideoRecord(key=f"v{number}", path=folder / f"{number}.mp4") for number in range(5)]


def shard(folder: Path, out: Path, *, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run `rhofast shard` under the limits that `before` sets in its shell."""
    command = f'{before} exec "$0" -m rhofast shard "$1" "$2" --short-side 32 --samples-per-shard 1 --workers 1'
    arguments = [sys.executable, str(folder), str(out)]
    return subprocess.run(["bash", "-c", command, *arguments], capture_output=True, text=True, timeout=120)


def test_a_limit_of_file_sizes_stops_the_command_and_keeps_what_is_finished(
    videos: list[VideoRecord], tmp_path: Path
) -> None:
    large = [frame_pixels(9, frame % 32) for frame in range(150)]
    (tmp_path / "videos" / "3.mp4").write_bytes(encode_mjpeg(large))
    out = tmp_path / "set"
    limited = shard(tmp_path / "videos", out, before="ulimit -f 32;")
    assert limited.returncode == 2 and "Traceback" not in limited.stderr
    assert "File too large" in limited.stderr and "finished shards are kept" in limited.stderr
    assert (out / "shard-000002.tar").exists() and not (out / "dataset.json").exists()
    done = shard(tmp_path / "videos", out)
    assert done.returncode == 0 and json.loads((out / "dataset.json").read_text())["refused"] == {}
