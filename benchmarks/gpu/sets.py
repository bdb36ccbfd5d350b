"""Build the shard sets of the GPU measurements, and list their shards several times.

    python -m benchmarks.gpu.sets VIDEOS... --out FOLDER [--cpu]

A set has one shard per video, so that all cores encode. The sets are small enough to be copied to a machine; there,
`repeat` lists each shard many times, under other names, as hard links to the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path

from benchmarks.gpu.scale import FULL, TINY, Scale
from benchmarks.machine import find_videos
from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.h26x import H264Codec, HevcCodec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.format.dataset import open_folder
from rhofast.data.types import VideoRecord
from rhofast.ingest.build import BuildSettings, build_shards
from rhofast.ingest.executors import LocalProcesses
from rhofast.ingest.listing import Listing
from rhofast.ingest.transcode import TranscodeSettings

SETS: dict[str, Codec] = {"jpeg": JpegCodec(), "h264": H264Codec(gop=16)}
MORE: dict[str, Codec] = {"h264_gop8": H264Codec(gop=8), "h264_gop32": H264Codec(gop=32), "hevc": HevcCodec(gop=16)}


def build_set(
    name: str, codec: Codec, sources: list[Path], out: Path, scale: Scale, *, samples_per_shard: int = 1
) -> None:
    """Store each video once.

    Args:
        name: Name of the set, and of its folder.
        codec: How the videos are stored.
        sources: The videos.
        out: Folder of the sets.
        scale: Length and size of the videos.
        samples_per_shard: Videos per shard; one shard is encoded by one core.

    Raises:
        RhofastError: The set cannot be built.
    """
    root, began = out / name, time.perf_counter()
    shutil.rmtree(root, ignore_errors=True)
    records = [VideoRecord(key=f"v{number:04d}", path=path.resolve()) for number, path in enumerate(sources)]
    transcode = TranscodeSettings(short_side=scale.short_side, max_seconds=scale.seconds, timeout=120)
    settings = BuildSettings(
        name=name, split="train", codec=codec, transcode=transcode, samples_per_shard=samples_per_shard
    )
    with Listing(records) as listing:
        build_shards(listing, root, settings, LocalProcesses(os.cpu_count() or 1))
    made = open_folder(root)
    seconds, size = time.perf_counter() - began, made.info.num_bytes / 1e6
    print(f"{name}: {len(made)} of {len(sources)} videos, {size:.1f} MB, {seconds:.1f} s", flush=True)


def repeat(source: Path, target: Path, samples: int) -> None:
    """Make a set with at least `samples` samples out of a smaller one, as hard links to its files.

    Args:
        source: Folder of a set.
        target: Folder of the new set, on the same file system. It may exist from an earlier call.
        samples: Least number of samples of the new set.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    values = json.loads((source / "dataset.json").read_text())
    once, values["shards"] = values["shards"], []
    for number in range(-(-samples // sum(shard["samples"] for shard in once))):
        for shard in once:
            name = shard["name"] if number == 0 else f"{shard['name']}-{number:04d}"
            for suffix in (".tar", ".arrow"):
                os.link(source / f"{shard['name']}{suffix}", target / f"{name}{suffix}")
            values["shards"].append({**shard, "name": name})
    (target / "dataset.json").write_text(json.dumps(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", help="video files, or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--cpu", action="store_true", help="small videos, for a rehearsal on the CPU")
    parser.add_argument("--more", action="store_true", help=f"also {', '.join(MORE)}, for the optional part `sets`")
    options = parser.parse_args()
    scale = TINY if options.cpu else FULL
    sources = find_videos(options.videos)[: scale.videos]
    for name, codec in (SETS | (MORE if options.more else {})).items():
        build_set(name, codec, sources, options.out, scale)


if __name__ == "__main__":
    main()
