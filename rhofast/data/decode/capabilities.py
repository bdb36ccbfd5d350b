"""What a GPU can decode by itself, asked of its driver before anything is built, and who decodes what then.

NVDEC decodes streams of video. Its library comes with the driver, but not into every container, and each generation of
GPUs takes other codecs and sizes (CUVIDDECODECAPS in cuviddec.h of NVIDIA's Video Codec SDK). nvJPEG decodes pictures,
some GPUs have engines for it, and others do it as ordinary computation.

What it is not: it decodes nothing. That a decoder is there does not mean that it gives frames of a codec in the right
order, so those codecs alone are asked for of which each packet is one frame: not VP9 and AV1, which hide some, and not
MPEG-4 part 2, which packs some together.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rhofast.data.types import VideoLimits

VIDEO_CODECS = {"h264": 4, "hevc": 8}  # FFmpeg's name: cudaVideoCodec
_CHROMA_420 = 1  # cudaVideoChromaFormat_420
_NO_NVDEC = "libnvcuvid.so.1 is not installed (in a container, set NVIDIA_DRIVER_CAPABILITIES=compute,video,utility)"

Wish = Literal["auto", "host", "nvdec"]
Choice = Literal["host", "nvdec"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What the device can decode.

    device        its name; None for the CPU
    video         codec -> its limits, for those that it decodes; empty where it decodes none
    why_not       why there is no video decoder, where there is none
    jpeg_engines  engines for JPEG; None where that could not be found out
    """

    device: str | None = None
    video: Mapping[str, VideoLimits] = field(default_factory=dict)
    why_not: str | None = None
    jpeg_engines: int | None = None


def detect(device_id: int | None) -> Capabilities:
    """Ask the driver what CUDA device `device_id` can decode; None: the CPU. It never raises: what cannot be asked is
    said in `why_not`."""
    if device_id is None:
        return Capabilities(why_not="this runs on the CPU")
    driver = _library("libcuda.so.1")
    if driver is None:
        return Capabilities(why_not="libcuda.so.1 is not installed: there is no NVIDIA driver")
    try:
        with _device(driver, device_id) as name:
            decoder, engines = _library("libnvcuvid.so.1"), _jpeg_engines()
            if decoder is None:
                return Capabilities(device=name, why_not=_NO_NVDEC, jpeg_engines=engines)
            video = {codec: limits for codec in VIDEO_CODECS if (limits := _video_limits(decoder, codec)) is not None}
            why_not = None if video else f"{name} decodes none of {', '.join(VIDEO_CODECS)}"
            return Capabilities(device=name, video=video, why_not=why_not, jpeg_engines=engines)
    except _DriverError as error:
        return Capabilities(why_not=str(error))


def choose_decoder(codec: str, capabilities: Capabilities, wish: Wish = "auto") -> tuple[Choice, str]:
    """(who decodes streams of this shard codec, the sentence that says so and why). codec: `h264`, `hevc` or `copy`.

    `nvdec` means all samples within its limits; the others, and those of `copy` that are of another codec, are decoded
    on the host. Raises ValueError if `nvdec` is wished for where it is not to be had.
    """
    can = {name: limits for name, limits in capabilities.video.items() if codec in (name, "copy")}
    if can and wish != "host":
        each = ", ".join(f"{name}: {limits.engines} engines" for name, limits in can.items())
        return "nvdec", f"{codec} is decoded by NVDEC of {capabilities.device} ({each})"
    why = "as wished" if wish == "host" else capabilities.why_not or f"{capabilities.device} does not decode it"
    if wish == "nvdec":
        raise ValueError(f"{codec} cannot be decoded by NVDEC: {why}")
    return "host", f"{codec} is decoded on the host: {why}"


def say_pictures(codec: str, capabilities: Capabilities, hw_decoder_load: float) -> str:
    """The sentence that says who decodes stored pictures, of which DALI always decodes some way."""
    if capabilities.device is None:
        return f"{codec} is decoded on the host"
    if not capabilities.jpeg_engines:
        return f"{codec} is decoded by nvJPEG on {capabilities.device}, without engines for it"
    share = f"{hw_decoder_load:.0%} of it by its {capabilities.jpeg_engines} engines"
    return f"{codec} is decoded by nvJPEG on {capabilities.device}, {share}"


class _DriverError(Exception):
    """A call into the driver that failed."""


def _check(call: str, status: int) -> None:
    if status != 0:
        raise _DriverError(f"the NVIDIA driver refuses {call} (status {status})")


def _library(name: str) -> Any:
    """A shared library; None where it cannot be loaded."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


@contextmanager
def _device(driver: Any, device_id: int) -> Iterator[str]:
    """Make a device's primary context (which torch and DALI share) current for a while; gives the device's name."""
    device, context, name = ctypes.c_int(), ctypes.c_void_p(), ctypes.create_string_buffer(256)
    _check("cuInit", driver.cuInit(0))
    _check("cuDeviceGet", driver.cuDeviceGet(ctypes.byref(device), device_id))
    _check("cuDeviceGetName", driver.cuDeviceGetName(name, len(name), device))
    _check("cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    try:
        _check("cuCtxPushCurrent", driver.cuCtxPushCurrent_v2(context))
        try:
            yield name.value.decode(errors="replace")
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


class _DecodeCaps(ctypes.Structure):
    """CUVIDDECODECAPS, 88 bytes: the first three are asked about, the driver fills in the rest."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("chroma", ctypes.c_int),
        ("bit_depth_minus_8", ctypes.c_uint),
        ("reserved_1", ctypes.c_uint * 3),
        ("is_supported", ctypes.c_ubyte),
        ("engines", ctypes.c_ubyte),
        ("output_formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_blocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("is_histogram_supported", ctypes.c_ubyte),
        ("counter_bit_depth", ctypes.c_ubyte),
        ("max_histogram_bins", ctypes.c_ushort),
        ("reserved_3", ctypes.c_uint * 10),
    )


def _video_limits(decoder: Any, codec: str) -> VideoLimits | None:
    caps = _DecodeCaps(codec=VIDEO_CODECS[codec], chroma=_CHROMA_420)
    _check("cuvidGetDecoderCaps", decoder.cuvidGetDecoderCaps(ctypes.byref(caps)))
    if not caps.is_supported:
        return None
    return VideoLimits(
        engines=max(1, caps.engines),  # old drivers leave it 0
        min_width=caps.min_width,
        min_height=caps.min_height,
        max_width=caps.max_width,
        max_height=caps.max_height,
        max_blocks=caps.max_blocks,
    )


def _jpeg_engines() -> int | None:
    """How many engines for JPEG the current device has, as nvJPEG says. It is loaded from where CUDA's wheels put it,
    or from the system; before CUDA 12 it could not say."""
    spec = find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    wheels = [str(path) for root in roots for path in sorted(root.glob("*/lib/libnvjpeg.so.*"))]
    nvjpeg = next(filter(None, map(_library, [*wheels, "libnvjpeg.so.13", "libnvjpeg.so.12"])), None)
    if nvjpeg is None or not hasattr(nvjpeg, "nvjpegGetHardwareDecoderInfo"):
        return None
    handle, engines, cores = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
    if nvjpeg.nvjpegCreateSimple(ctypes.byref(handle)) != 0:
        return None
    status = nvjpeg.nvjpegGetHardwareDecoderInfo(handle, ctypes.byref(engines), ctypes.byref(cores))
    nvjpeg.nvjpegDestroy(handle)
    return engines.value if status == 0 else None
