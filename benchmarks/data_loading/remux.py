"""Codec `remux` against `h264`: CPU time, bytes, frames, reads, damage, and builds that are killed.

Each part checks a promise of the codec on real videos, and the program exits with 1 if one is broken:

    speed    CPU seconds per video of `make_sample`, against h264 on the same files; at least 20 times with keys;
             `decode` is the limit of check=full: every frame is decoded, and nothing else is done
    bytes    of the member, divided by the bytes of the source's video packets; at most 1.05
    frames   of the member, bit by bit those of the source
    segments random ones, of which each has the frames that the source shows in [start, end), by the source's own clock
    reads    bytes that random clips read, divided by the bytes of the groups that they need; at most 1.05
    damage   spoiled copies: none is taken about whose pictures ffmpeg reports damage (check=full)
    kills    a build that is killed at random moments and continued has the bytes of one that was not
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.console import Console

from benchmarks.machine import facts_line, facts_of_the_machine, find_videos
from rhofast.config.schema import ClipConfig
from rhofast.data.codecs.codec import Codec, Member
from rhofast.data.codecs.h26x import H264Codec
from rhofast.data.codecs.remux import RemuxCodec
from rhofast.data.codecs.unfit import UnfitError
from rhofast.data.format.index import IndexRow
from rhofast.data.sampling.clip_cost import clip_cost
from rhofast.data.types import VideoRecord
from rhofast.ingest.dry_run import cpu_seconds
from rhofast.ingest.ffmpeg_messages import LOG_LEVEL, pictures_are_whole, read_messages
from rhofast.ingest.machine_errors import UnreadableError
from rhofast.ingest.probe import RefusedError, SourceInfo, probe
from rhofast.ingest.remux import remux
from rhofast.ingest.sample import make_sample
from rhofast.ingest.transcode import TranscodeSettings, encoder_version, find_ffmpeg

FULL, KEYS, H264 = RemuxCodec(), RemuxCodec(check="keys"), H264Codec()
CLIPS = ClipConfig(num_clips=2, num_frames=8, frame_stride=8, fps=30.0)
SPEED, SIZE, READS = 20.0, 1.05, 1.05  # the limits

console = Console(width=120)


def measure(codec: Codec, path: Path, folder: Path) -> float:
    """Return the CPU seconds in which a video becomes a sample."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source = Path(scratch) / f"source{path.suffix}"  # a name of its own: nothing is known of it from before
        source.symlink_to(path.resolve())
        begun = cpu_seconds()
        make_sample(VideoRecord(key="video", path=source), [codec], TranscodeSettings(), Path(scratch))
        return cpu_seconds() - begun


def measure_decoding(path: Path) -> float:
    """Return the CPU seconds in which every frame of a video is decoded as `full` does it, by one thread."""
    begun = cpu_seconds()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.codec_context.options = 1, {"skip_loop_filter": "nokey"}
        for _ in container.decode(stream):
            pass
    return cpu_seconds() - begun


def frames_of(path: Path) -> list[bytes]:
    """Return a digest of each frame, as the decoder gives it."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        return [hashlib.blake2b(frame.to_ndarray().tobytes()).digest() for frame in container.decode(video=0)]


def wrong_segments(path: Path, source: SourceInfo, count: int, folder: Path) -> int:
    """Return how many of some random segments do not have the frames that the source shows in their time."""
    with av.open(str(path)) as container:
        stream = container.streams[source.stream]
        stream.thread_count = 1
        shown = [
            (frame.time, hashlib.blake2b(frame.to_ndarray().tobytes()).digest()) for frame in container.decode(stream)
        ]
    times = np.array([time for time, _ in shown]) - shown[0][0]
    draw, wrong, tick = np.random.default_rng(0), 0, 1e-6
    for _ in range(count):
        start, end = np.sort(draw.uniform(0, times[-1] + 0.1, 2)).round(3).tolist()
        expected = [digest for time, (_, digest) in zip(times, shown, strict=True) if start - tick <= time < end - tick]
        try:
            member = remux(path, source, KEYS, (start, end), folder / "segment")
        except RefusedError:
            wrong += bool(expected)
            continue
        lead = -int(member.units.frame[0])
        wrong += frames_of(folder / "segment")[lead : lead + member.num_frames] != expected
    return wrong


def read_share(member: Member, size: int) -> float:
    """Return the bytes that the clips of 200 visits read, divided by the bytes of the groups that they need."""
    row = IndexRow(
        key="video",
        label=None,
        source_digest=bytes(16),
        offset=0,
        size=size,
        num_frames=member.num_frames,
        fps=float(member.fps),
        width=member.width,
        height=member.height,
        units=member.units,
    )
    read = clip_cost([FULL], [row] * 200, CLIPS)[0]
    header = int(member.units.size[0])
    return read / (read - header)


def facts_of(path: Path, folder: Path, rounds: int, segments: int) -> dict[str, Any]:
    """Measure one video; of one that does not fit, return why."""
    try:
        source = probe(path)
        member = remux(path, source, FULL, (None, None), folder / "member")
    except (UnfitError, RefusedError) as error:
        return {"refused": f"{error.reason}: {error.detail}"}
    times: dict[str, list[float]] = {name: [] for name in ("h264", "decode", "full", "keys")}
    for _ in range(rounds):
        times["decode"].append(measure_decoding(path))
        for name, codec in (("h264", H264), ("full", FULL), ("keys", KEYS)):
            times[name].append(measure(codec, path, folder))
    with av.open(str(path)) as container:
        packets = sum(packet.size for packet in container.demux(container.streams[source.stream]))
    size = (folder / "member").stat().st_size
    return {
        **{name: sorted(each)[len(each) // 2] for name, each in times.items()},
        "bytes": size / packets,
        "frames": member.num_frames,
        "groups": len(member.units.frame) - 1,
        "same": frames_of(path) == frames_of(folder / "member"),
        "reads": read_share(member, size),
        "segments": segments,
        "wrong": wrong_segments(path, source, segments, folder),
    }


# ---- damage ----


def spoil(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a copy of a file with some bytes changed, its end cut off, a piece missing, or a piece doubled."""
    kind, begin, size = rng.random(), int(rng.integers(len(content))), int(rng.integers(1, 2000))
    if kind < 0.6:
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 5))):
            begin, size = int(rng.integers(len(content))), int(rng.integers(1, 200))
            changed[begin : begin + size] = rng.bytes(len(changed[begin : begin + size]))
        return bytes(changed)
    if kind < 0.75:
        return content[: max(begin, 1)]
    if kind < 0.9:
        return content[:begin] + content[begin + size :]
    return content[: begin + size] + content[begin:]


def reports_damage(path: Path, source: SourceInfo) -> bool:
    """Return whether ffmpeg reports damage of the pictures when it decodes all of them."""
    command = [find_ffmpeg(), "-nostdin", "-hide_banner", "-nostats", "-loglevel", LOG_LEVEL, "-threads", "1"]
    command += ["-i", f"file:{path}", "-map", f"0:{source.stream}", "-f", "null", "-"]
    said = read_messages(subprocess.run(command, capture_output=True).stderr, source)
    return bool(said.damage or (said.doubt and not pictures_are_whole(path, source)))


def try_damaged(path: Path, seed: int) -> tuple[str, str, bool]:
    """Return what full, and what keys, say of a spoiled copy (`taken`, or a reason), and whether ffmpeg reports."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"copy{path.suffix}"
        copy.write_bytes(spoil(path.read_bytes(), np.random.default_rng(seed)))
        try:
            source = probe(copy)
        except (RefusedError, UnreadableError) as error:
            reason = str(getattr(error, "reason", "unreadable"))
            return reason, reason, True
        found = []
        for codec in (FULL, KEYS):
            try:
                remux(copy, source, codec, (None, None), Path(folder) / "member")
                found.append("taken")
            except (UnfitError, RefusedError) as error:
                found.append(str(error.reason))
            except UnreadableError:
                found.append("unreadable")
        return found[0], found[1], reports_damage(copy, source) if "taken" in found else True


def damage(videos: list[Path], count: int, workers: int) -> dict[str, Any]:
    """Try spoiled copies; return how many were taken, and of how many of these ffmpeg reports damage."""
    with ProcessPoolExecutor(workers) as pool:
        chosen = [videos[number % len(videos)] for number in range(count)]
        results = list(pool.map(try_damaged, chosen, range(count), chunksize=4))
    return {
        "tried": count,
        **{
            f"refused as {reason}": number
            for reason, number in Counter(full for full, _, _ in results if full != "taken").items()
        },
        "taken by full": sum(full == "taken" for full, _, _ in results),
        "of them reported by ffmpeg": sum(full == "taken" and reported for full, _, reported in results),
        "taken by keys": sum(keys == "taken" for _, keys, _ in results),
        "of these reported by ffmpeg": sum(keys == "taken" and reported for _, keys, reported in results),
    }


# ---- kills ----


def kills(videos: list[Path], count: int, folder: Path) -> dict[str, Any]:
    """Kill a build at random moments and continue it; return whether all ended with the same bytes."""
    links = folder / "links"
    links.mkdir()
    for number in range(48):
        path = videos[number % len(videos)]
        (links / f"{number:03d}{path.suffix}").symlink_to(path.resolve())
    return killed_builds(links, ("--codec", "remux", "--samples-per-shard", "3"), count, folder)


def killed_builds(source: Path, options: Sequence[str], count: int, folder: Path) -> dict[str, Any]:
    """Kill builds of a set at random moments and continue them; return whether all ended with the same bytes.

    Args:
        source: What the set is made of.
        options: Of `rhofast shard`.
        count: Number of kills.
        folder: A folder for the sets.
    """
    draw = random.Random(0)

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "rhofast", "shard", str(source), str(out), *options]
        command += ["--name", "set", "--workers", "2"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    begun = time.perf_counter()
    if start(folder / "whole").wait() != 0:
        raise SystemExit("the build failed")
    seconds = time.perf_counter() - begun
    killed = 0
    out = folder / "killed"
    while killed < count:
        process = start(out)
        try:
            process.wait(draw.uniform(0.1, 0.8) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            killed += 1
        if process.returncode == 0:  # begin again; one that was killed while it deleted its last files is continued
            out.rename(folder / f"killed-{sum(1 for _ in folder.iterdir())}")
    if out.exists() and start(out).wait() != 0:
        raise SystemExit("the continued build failed")
    whole = contents(folder / "whole")
    ended = [contents(one) for one in folder.glob("killed*")]
    return {"killed": killed, "sets": len(ended), "same": all(one == whole for one in ended)}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


# ---- the report ----


def lines_of(report: dict[str, Any]) -> list[str]:
    lines = [
        "| video | frames | groups | h264, s | decode, s | | full, s | | keys, s | | bytes / source | read / groups |"
        " same | spans |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|",
    ]
    for name, one in report["videos"].items():
        if "refused" in one:
            lines.append(f"| {name} | {one['refused']} |{' |' * 12}")
            continue
        cells = [name, one["frames"], one["groups"], f"{one['h264']:.2f}"]
        for kind in ("decode", "full", "keys"):
            cells += [f"{one[kind]:.3f}", f"{one['h264'] / one[kind]:.0f} x"]
        cells += [f"{one['bytes']:.4f}", f"{one['reads']:.4f}", "yes" if one["same"] else "NO"]
        cells += [f"{one['segments'] - one['wrong']} of {one['segments']}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    total = report["total"]
    words = ", ".join(f"{kind} {total[kind]:.1f}" for kind in ("decode", "full", "keys"))
    lines += ["", f"All together, times as fast as h264: {words}.", ""]
    for name in ("damage", "kills"):
        if name in report:
            lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in report[name].items()) + ".")
            lines.append("")
    return lines


def broken(report: dict[str, Any]) -> list[str]:
    taken = {name: one for name, one in report["videos"].items() if "refused" not in one}
    found = [f"{name}: {one['bytes']:.3f} of the bytes" for name, one in taken.items() if one["bytes"] > SIZE]
    found += [
        f"{name}: {one['reads']:.3f} of the groups are read" for name, one in taken.items() if one["reads"] > READS
    ]
    found += [f"{name}: {one['wrong']} wrong segments" for name, one in taken.items() if one["wrong"]]
    found += [f"{name}: other frames" for name, one in taken.items() if not one["same"]]
    found += [f"keys: {report['total']['keys']:.1f} times as fast"] if report["total"]["keys"] < SPEED else []
    found += ["damage is taken silently"] if report.get("damage", {}).get("of them reported by ffmpeg") else []
    found += ["killed builds differ"] if not report.get("kills", {"same": True})["same"] else []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", help="video files, or folders of them")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the speed (default: %(default)s)")
    parser.add_argument("--segments", type=int, default=200, help="segments per video (default: %(default)s)")
    parser.add_argument("--damaged", type=int, default=1000, help="spoiled copies (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="builds that are killed (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that try spoiled copies")
    parser.add_argument("--out", type=Path, help="folder for remux.json and remux.md")
    options = parser.parse_args()

    videos, load = find_videos(options.videos), os.getloadavg()[0]
    facts = facts_of_the_machine(("av", "numpy"))
    facts["versions"]["ffmpeg"] = encoder_version()
    report: dict[str, Any] = {"machine": facts, "videos": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for path in videos:
            with console.status(path.name):
                report["videos"][path.name] = facts_of(path, folder, options.rounds, options.segments)
        taken = {name: one for name, one in report["videos"].items() if "refused" not in one}
        h264 = sum(one["h264"] for one in taken.values())
        report["total"] = {name: h264 / sum(one[name] for one in taken.values()) for name in ("decode", "full", "keys")}
        fitting = [path for path in videos if path.name in taken]
        if options.damaged:
            small = [path for path in fitting if path.stat().st_size < 700_000] or fitting
            report["damage"] = damage(small, options.damaged, options.workers)
        if options.kills:
            report["kills"] = kills(fitting, options.kills, folder)
    text = "\n".join([*lines_of(report), facts_line(facts, load), ""])
    console.print(text, markup=False)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "remux.json").write_text(json.dumps(report, indent=1))
        (options.out / "remux.md").write_text(text)
    if failures := broken(report):
        raise SystemExit("; ".join(failures))


if __name__ == "__main__":
    main()
