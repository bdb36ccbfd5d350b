"""Videos of strangers: what SECURITY.md promises of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rhofast.cli.app import app
from rhofast.data.codecs import codec_settings
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.types import VideoRecord
from rhofast.ingest import opened, shard_job
from rhofast.ingest.job_result import read_result
from rhofast.ingest.source import Deadline, call_reader, isolated
from rhofast.ingest.transcode import TranscodeSettings, encoder_version
from tests.helpers.playlists import listening, playlists
from tests.helpers.shards import encode_mjpeg, frame_pixels


@pytest.fixture(scope="module")
def video() -> bytes:
    return encode_mjpeg([frame_pixels(0, frame) for frame in range(12)])


def shard(source: Path, out: Path, *options: str) -> dict[str, str]:
    """Make shards; return the reasons of the refused videos by name."""
    app(["shard", str(source), str(out), "--workers", "1", *options], standalone_mode=False)
    lines = [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]
    return {Path(line["path"]).name: line["reason"] for line in lines}


@pytest.mark.parametrize("codec", ["jpeg", "copy"])
def test_a_source_that_is_a_playlist_opens_no_address_and_no_other_file(
    codec: str, video: bytes, tmp_path: Path
) -> None:
    source, secret = tmp_path / "in", tmp_path / "secret.mp4"
    source.mkdir()
    secret.write_bytes(video)
    (source / "fine.mp4").write_bytes(video)
    with listening() as (port, seen):
        texts = playlists(port, secret)
        for kind, text in texts.items():
            (source / f"{kind}.mp4").write_bytes(text)
        refused = shard(source, tmp_path / "out", "--codec", codec)
    assert refused == {f"{kind}.mp4": "not_a_video" for kind in texts}
    assert not seen


def shell_names() -> Iterator[str]:
    for text in ("; touch pwned", "$(touch pwned)", "`touch pwned`", "| touch pwned", "&& touch pwned", "> pwned"):
        yield f"a {text} .mp4"
    yield from ("-y -i pwned.mp4", "file:pwned.mp4", "pipe:0.mp4", "%d.mp4", "'a.mp4", '"a.mp4', "a\n-y.mp4", "@a.mp4")


def test_no_name_of_a_video_is_a_command_or_an_option(
    video: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    names = [name if name.endswith(".mp4") else f"{name}.mp4" for name in shell_names()]
    for name in names:
        (source / name).write_bytes(video)
    assert shard(source, tmp_path / "out") == {}
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert sum(shard["samples"] for shard in info["shards"]) == len(names)
    assert not list((tmp_path / "cwd").iterdir())


def test_a_video_that_crashes_or_hangs_its_reader_costs_that_video_alone(
    video: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = []
    for number, name in enumerate(("first", "crash", "hang", "last")):
        (tmp_path / f"{name}.mp4").write_bytes(video)
        records.append(VideoRecord(key=f"v{number}", path=tmp_path / f"{name}.mp4", label=0, label_name="run"))

    def fail(function: Callable[..., Any], path: Path, *arguments: Any, deadline: Deadline) -> Any:
        if path.stem == "crash":
            return call_reader(os.abort, deadline=deadline)
        if path.stem == "hang":
            return isolated.call(time.sleep, 60, seconds=0.2)
        return call_reader(function, path, *arguments, deadline=deadline)

    monkeypatch.setattr(opened, "call_reader", fail)
    (tmp_path / "out").mkdir()
    job = shard_job.ShardJob(
        number=0,
        records=tuple(records),
        out=tmp_path / "out",
        codecs=[codec_settings(JpegCodec())],
        settings=TranscodeSettings(short_side=32),
        encoder=encoder_version(),
    )
    assert shard_job.run_shard_job(job) == (0, 2)
    *_, last = read_result(job.result_file)
    assert last.end is not None and last.end.shard is not None and last.end.shard.samples == 2
    assert [(source.key, source.reason) for source in last.refused] == [("v1", "damaged"), ("v2", "timeout")]
