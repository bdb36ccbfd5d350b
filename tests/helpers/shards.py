"""Tiny videos and shards. Pixels encode what they are: see `frame_pixels`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
import zlib
from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import ffmpeg
import numpy as np
import numpy.typing as npt

from rhofast.data.codecs import codec_settings
from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.h26x import H264Codec, HevcCodec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.codecs.remux import RemuxCodec
from rhofast.data.codecs.stream_copy import CopyCodec
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.format.dataset_json import DatasetInfo, ShardInfo
from rhofast.data.format.index import IndexRow
from rhofast.data.format.index_writer import write_index
from rhofast.data.types import TimedLabel
from rhofast.ingest.probe import probe
from rhofast.ingest.remux import remux
from rhofast.ingest.transcode import find_ffmpeg

ROOT = Path(__file__).parents[2]  # of the checkout
SHARED = Path(os.environ.get("RHOFAST_SHARED", ROOT.parent / "shared"))
REAL_VIDEOS = Path(os.environ.get("RHOFAST_REAL_VIDEOS", SHARED / "videos"))

WIDTH, HEIGHT, FPS = 64, 48, 12

# A run of seconds, on the shards of the fixture below.
TINY_PAGE = """
name = "tiny"
[clips]
num_frames = 2
frame_stride = 2
fps = 12
[augment]
size = 16
[backbone]
name = "slow_r18"
width = 4
[method]
name = "byol"
hidden = 16
out = 8
[train]
batch_size = 4
steps = 2
[eval]
views = 1
"""


NUM_VIDEOS, NUM_FRAMES = 13, 24

STREAMS: dict[str, Codec] = {
    "h264": H264Codec(quality=4, gop=4),
    "hevc": HevcCodec(quality=4, gop=5),
    "copy": CopyCodec(),
}


def frame_pixels(video: int, frame: int, width: int = WIDTH, height: int = HEIGHT) -> npt.NDArray[np.uint8]:
    """A frame u8[H, W, 3] from which its numbers can be read: red = 8 * frame, green = 8 * video, blue a ramp."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0] = 8 * frame
    image[..., 1] = 8 * video
    image[..., 2] = np.linspace(0, 255, width, dtype=np.uint8)
    return image


def encode_mjpeg(frames: list[npt.NDArray[np.uint8]], fps: int = FPS) -> bytes:
    """An MJPEG MP4 of u8[H, W, 3] frames, as the jpeg codec stores it."""
    sink = BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=Fraction(fps), options={"qmin": "2", "qmax": "2"})
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt = "yuvj420p"
        stream.codec_context.thread_count = 1
        for pixels in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return sink.getvalue()


_JPEG = JpegCodec(quality=2)


def encode_stream(frames: list[npt.NDArray[np.uint8]], codec: Codec, out: Path) -> bytes:
    """A member of u8[H, W, 3] frames as a codec stores it; for `copy` and `remux`, of H.264 with B-frames."""
    height, width, _ = frames[0].shape
    given = ffmpeg.input("pipe:", f="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", r=FPS)
    arguments = codec.encoder_arguments() or {"vcodec": "libx264", "pix_fmt": "yuv420p", "crf": 4, "bf": 2, "g": 5}
    output = ffmpeg.output(given, f"file:{out}", threads=1, **arguments).global_args("-loglevel", "error", "-y")
    command = ffmpeg.compile(output, cmd=find_ffmpeg())
    subprocess.run(command, input=b"".join(frame.tobytes() for frame in frames), check=True)
    if isinstance(codec, RemuxCodec):
        remux(out, probe(out), codec, (None, None), out.with_suffix(".member"))
        return out.with_suffix(".member").read_bytes()
    return out.read_bytes()


def write_shards(
    root: Path,
    members: list[bytes],
    *,
    labels: Sequence[int | None] | None = None,
    further: Sequence[Sequence[TimedLabel]] | None = None,
    extra: Sequence[dict[str, Any] | None] | None = None,
    start: float | None = None,
    per_shard: int = 5,
    codec: Codec | Sequence[Codec] = _JPEG,
) -> ShardSet:
    """A shard set of ready members, without ffmpeg: all of one codec, or each of its own.

    `further` are the labels with times of each member, `extra` the user's own fields, `start` is where all segments
    begin in their sources.
    """
    codecs = [codec] * len(members) if isinstance(codec, Codec) else list(codec)
    listed = list(dict.fromkeys(codecs))
    root.mkdir(parents=True)
    shards, found = [], {label for label in labels or () if label is not None}
    for number, first in enumerate(range(0, len(members), per_shard)):
        name, rows = f"shard-{number:06d}", []
        with tarfile.open(root / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for video in range(first, min(first + per_shard, len(members))):
                content = members[video]
                timed = () if further is None else tuple(further[video])
                found |= {each.label for each in timed}
                note: dict[str, Any] = {"label": None if labels is None else labels[video], "labels": timed}
                note |= {"extra": None if extra is None else extra[video], "start": start}
                metadata = json.dumps(note).encode()
                entry = tarfile.TarInfo(f"v{video}.json")
                entry.size = len(metadata)
                tar.addfile(entry, BytesIO(metadata))
                entry = tarfile.TarInfo(f"v{video}.mp4")
                entry.size = len(content)
                offset = tar.offset + tarfile.BLOCKSIZE
                tar.addfile(entry, BytesIO(content))
                member = codecs[video].index_member(BytesIO(content))
                rows.append(
                    IndexRow(
                        key=f"v{video}",
                        label=None if labels is None else labels[video],
                        labels=timed,
                        source_digest=hashlib.blake2b(content, digest_size=16).digest(),
                        offset=offset,
                        size=len(content),
                        json_size=len(metadata),
                        json_crc=zlib.crc32(metadata),
                        num_frames=member.num_frames,
                        fps=float(member.fps),
                        width=member.width,
                        height=member.height,
                        units=member.units,
                        codec=listed.index(codecs[video]),
                    )
                )
        frames = sum(row.num_frames for row in rows)
        shards.append(
            ShardInfo(
                name=name,
                samples=len(rows),
                frames=frames,
                seconds=frames / FPS,
                bytes=(root / f"{name}.tar").stat().st_size,
                index_sha256=write_index(root / f"{name}.arrow", rows, {}),
                index_bytes=(root / f"{name}.arrow").stat().st_size,
                tar_sha256=hashlib.sha256((root / f"{name}.tar").read_bytes()).hexdigest(),
            )
        )
    info = DatasetInfo(
        name="tiny",
        split="train",
        codecs=[codec_settings(codec) for codec in listed],
        classes=[f"class {label}" for label in range(max(found, default=-1) + 1)],
        shards=shards,
        refused={},
        build="",
    )
    (root / "dataset.json").write_text(json.dumps(info.model_dump()))
    return open_folder(root)


def damage_unit(shards: ShardSet, sample: int, unit: int) -> int:
    """Flip a bit in the middle of a unit; returns the offset of the unit's first byte in the tar."""
    row, (shard, _) = shards.row(sample), shards.locate(sample)
    path = shards.root / shards.info.shards[shard].tar
    begin = row.offset + int(row.units.offset[unit])
    content = bytearray(path.read_bytes())
    content[begin + int(row.units.size[unit]) // 2] ^= 1
    path.write_bytes(content)
    return begin
