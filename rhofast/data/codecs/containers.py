"""Read a stored member with PyAV: its packets, fragments, checksums and colors.

All functions take a binary file that can seek, and read it from its beginning. A file that cannot be read raises
ValueError. timeline.py decodes single frames.
"""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter
from zlib_ng.zlib_ng import crc32

Picture = npt.NDArray[np.uint8]

# Metadata that is not UTF-8 must not refuse a video; PyAV escapes it by itself from version 19 on.
LENIENT: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
_SHORT_STREAM, _SYNC_BYTE = 1 << 16, 0x47  # bytes of a transport stream, and the first of each of its packets
_THUMB = 16  # sides in pixels of the picture whose mean is a frame's mean color; divides the sides of stored pictures


class _Scaler(threading.local):
    """A scaler for each thread, which is kept: to set one up takes ten times as long as to scale a small picture."""

    def __init__(self) -> None:
        self.own = VideoReformatter()


_scaler = _Scaler()


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet of a video stream.

    Attributes:
        offset: Position of its first byte in the file.
        size: Size in bytes.
        is_key: Whether it is a key frame.
    """

    offset: int
    size: int
    is_key: bool


# FFmpeg's demuxers of files that hold video or sound by themselves. Playlists and descriptions (hls, dash, concat, sdp,
# imf, vobsub, ...) are not among them: they make FFmpeg open other files, or sockets.
_FORMATS = (
    "3dostr,4xm,aac,ac3,aiff,amr,anm,ape,apng,apv,argo_brp,asf,asf_o,au,av1,avi,avs,avs2,avs3,"
    "bethsoftvid,bfi,bink,bmv,c93,caf,cavsvideo,cdg,cdxl,cine,dfa,dhav,dirac,dnxhd,dsicin,dts,"
    "dtshd,dv,dxa,ea,eac3,evc,film_cpk,filmstrip,flac,flic,flv,gdv,gif,gxf,h261,h263,h264,hevc,"
    "hnm,idcin,iff,ifv,ingenient,ipmovie,ipu,iv8,ivf,ivr,jpegxl_anim,jv,kux,latm,live_flv,lmlm4,"
    "loas,luodat,lvf,lxf,m4v,matroska,mgsts,mjpeg,mjpeg_2000,mlp,mm,mods,moflex,mov,mp3,mpc,mpc8,"
    "mpeg,mpegts,mpegtsraw,mpegvideo,mpjpeg,mtv,mv,mvi,mxf,mxg,nc,nsv,nut,nuv,obu,ogg,oma,paf,"
    "pdv,pmp,psxstr,pva,r3d,rl2,rm,roq,rpl,sdr2,sga,siff,simbiosis_imx,smjpeg,smk,smush,sol,svs,"
    "swf,tak,thp,tiertexseq,tmv,truehd,tta,txd,ty,usm,vc1,vc1test,vividas,vivo,vmd,voc,vvc,w64,"
    "wav,wc3movie,webm,wsvqa,wtv,wv,xa,xmv,xwma,yop,yuv4mpegpipe"
)
WHITELIST = {"format_whitelist": _FORMATS}
"""FFmpeg's option that refuses all formats but files of video and sound; which one a file is, only its bytes say."""

ONLY_FILES = {"protocol_whitelist": "file"}
"""FFmpeg's option by which no address can be opened, whatever a file names."""

_NO_PROTOCOL = {"protocol_whitelist": "none"}  # the file is read by Python; nothing else may be opened


def open_container(file: BinaryIO, *, mp4: bool = True, probe: bool = True) -> Any:
    """Open a member with PyAV.

    Args:
        file: The member.
        mp4: Whether it has to be an MP4; otherwise it may be any that WHITELIST has.
        probe: Whether to decode a little, to find what the header does not state. It costs as much as some frames.

    Returns:
        The opened container.

    Raises:
        ValueError: The member cannot be opened.
    """
    kind = None if mp4 else _known_format(file)
    file.seek(0)
    try:
        options = {**WHITELIST, **_NO_PROTOCOL, **({} if probe else {"probesize": "32", "analyzeduration": "0"})}
        return av.open(file, "r", format="mp4" if mp4 else kind, options=options, **LENIENT)
    except (av.error.FFmpegError, ValueError) as error:
        raise ValueError(f"the stored member cannot be opened: {error}") from None


def open_source(path: Path) -> Any:
    """Open a video file that somebody else made, which may be of any format of WHITELIST, with PyAV.

    Raises:
        FFmpegError: The file cannot be opened, or is of another format: a picture, a playlist, an address.
        ValueError: Its path or its metadata cannot be read.
    """
    kind = None
    with suppress(OSError), path.open("rb") as file:
        kind = _known_format(file)
    return av.open(f"file:{path}", format=kind, options={**WHITELIST, **ONLY_FILES}, **LENIENT)


def _known_format(file: BinaryIO) -> str | None:
    """Return the format of a file that FFmpeg takes for another one; None to let FFmpeg find out.

    Transport streams of a few packets (ISO/IEC 13818-1, 2.4.3.2) are taken for program streams.
    """
    size = file.seek(0, io.SEEK_END)
    if not 0 < size <= _SHORT_STREAM:
        return None
    file.seek(0)
    content = file.read(size)
    for begin, step in ((0, 188), (4, 192), (0, 204)):
        if size % step == 0 and set(content[begin::step]) == {_SYNC_BYTE}:
            return "mpegts"
    return None


def video_stream(container: Any) -> Any:
    """Return the first default video stream of a container, or else its first video stream.

    Cover pictures and streams that cannot be decoded do not count.

    Raises:
        ValueError: There is no such stream.
    """
    disposition = av.stream.Disposition
    streams = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & disposition.attached_pic
    ]
    if not streams:
        raise ValueError("no video stream")
    return next((stream for stream in streams if stream.disposition & disposition.default), streams[0])


def pixel_aspect(stream: Any) -> float:
    """Return the width of a stream's pixels as shown, divided by their height, as single precision holds it."""
    return float(np.float32(stream.sample_aspect_ratio or 1))


def demux(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets of one stream, then the empty one that flushes its decoder.

    Streams that appear behind the header (FLV, MPEG) make PyAV fail when it flushes them; by then all packets are read.

    Raises:
        FFmpegError: The file cannot be read.
    """
    with suppress(IndexError):
        yield from container.demux(stream)


def read_packets(file: BinaryIO) -> tuple[int, int, Fraction, list[Packet]]:
    """Read the packets of a member's video stream.

    Returns:
        Width, height, frame rate (0 for a single picture), and the packets in the order of the file.

    Raises:
        ValueError: The member cannot be read.
    """
    with open_container(file) as container:
        stream = video_stream(container)
        fps = Fraction(stream.average_rate or 0)
        size = int(stream.codec_context.width), int(stream.codec_context.height)
        try:
            packets = [
                Packet(int(packet.pos), int(packet.size), bool(packet.is_keyframe))
                for packet in demux(container, stream)
                if packet.size
            ]
        except av.error.FFmpegError as error:
            raise ValueError(f"the stored member cannot be read: {error}") from None
    return *size, fps, packets


def boxes(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield the outermost boxes of an MP4 (ISO/IEC 14496-12, 4.2): kind, position and size of each.

    The last box may be larger than what is left of the file. If its size is smaller than a box's head of 8 bytes, what
    follows it is unknown.
    """
    end, offset = file.seek(0, io.SEEK_END), 0
    while offset + 8 <= end:
        file.seek(offset)
        head = file.read(16)
        size, kind = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            (size,) = struct.unpack(">Q", head[8:])
        yield kind, offset, size
        if size < 8:
            return
        offset += size


def mp4_defect(path: Path, size: int) -> str | None:
    """Return why an MP4 or MOV has no table of contents, as a download that was cut short; None for other files.

    Args:
        path: The file, which FFmpeg cannot open.
        size: Its bytes.
    """
    end, seen = 0, False
    with suppress(OSError), path.open("rb") as file:
        for kind, offset, length in boxes(file):
            if length < 8 or (offset == 0 and kind != b"ftyp"):
                return None
            end, seen = offset + length, seen or kind == b"moov"
        if end > size:
            return f"cut short: it has {size:,} of at least {end:,} bytes"
        if end and not seen:
            return "not finished: an MP4 without its table of contents (moov)"
    return None


def fragment_starts(file: BinaryIO) -> list[int]:
    """Find where the fragments of an MP4 begin: at its `moof` boxes.

    Returns:
        The positions of the boxes, ascending.

    Raises:
        ValueError: The file does not end with a whole box.
    """
    end, starts = 0, []
    for kind, offset, size in boxes(file):
        end = offset + size
        if kind == b"moof":
            starts.append(offset)
    if end != file.seek(0, io.SEEK_END):
        raise ValueError("the stored member is not a whole MP4")
    return starts


def checksums(file: BinaryIO, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Compute the CRC-32 of the bytes between neighboring offsets.

    Args:
        file: The member.
        offsets: i64[U + 1], ascending, adjacent pieces.

    Returns:
        u32[U].
    """
    file.seek(int(offsets[0]))
    return np.array([crc32(file.read(int(size))) for size in np.diff(offsets)], dtype=np.uint32)


def decode_all(container: Any, stream: Any) -> Iterator[Any]:
    """Decode all frames of a stream.

    Args:
        container: An opened container.
        stream: One of its video streams.

    Yields:
        The frames in the order in which they are shown.

    Raises:
        ValueError: A frame cannot be decoded.
    """
    try:
        for packet in demux(container, stream):
            yield from packet.decode()
    except av.error.FFmpegError as error:
        raise ValueError(f"the stored member cannot be decoded: {error}") from None


def key_frame_colors(file: BinaryIO) -> npt.NDArray[np.float64]:
    """Return the mean color of each key frame, f64[N, 3] in 0..255."""
    with open_container(file) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        stream.codec_context.skip_frame = "NONKEY"
        return np.array([mean_color(frame) for frame in decode_all(container, stream)]).reshape(-1, 3)


def count_frames(file: BinaryIO) -> int:
    """Decode a member and return the number of its frames."""
    with open_container(file) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        return sum(1 for _ in decode_all(container, stream))


def mean_color(frame: Any) -> npt.NDArray[np.float64]:
    """Return the mean color of a frame, f64[3] in 0..255."""
    size = {"width": _THUMB, "height": _THUMB}
    small = _scaler.own.reformat(frame, **size, format="rgb24", interpolation="AREA", threads=1)
    mean: npt.NDArray[np.float64] = small.to_ndarray().reshape(-1, 3).mean(axis=0)
    return mean
