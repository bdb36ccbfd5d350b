"""Ask the driver what a GPU can decode in hardware, and choose the decoder for each storage codec.

NVDEC decodes video streams. Its library comes with the driver, but is missing in some containers, and the accepted
codecs and sizes depend on the generation of the GPU (CUVIDDECODECAPS in cuviddec.h of NVIDIA's Video Codec SDK). nvJPEG
decodes pictures, on hardware engines if the GPU has some, and otherwise on its ordinary cores.

Only codecs with one frame per packet are considered, because with others the decoder may not return the frames in the
right order: VP9 and AV1 have hidden frames, and MPEG-4 part 2 packs several frames together.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rhofast.data.decode.video_limits import VideoLimits

_ANY_STREAM = ("remux", "copy")  # storage codecs whose streams are of any of these
VIDEO_CODECS = {"h264": 4, "hevc": 8}  # name in FFmpeg: cudaVideoCodec
_CHROMA_420 = 1  # cudaVideoChromaFormat_420
_NO_NVDEC = "libnvcuvid.so.1 is not installed (in a container, set NVIDIA_DRIVER_CAPABILITIES=compute,video,utility)"

Wish = Literal["auto", "host", "nvdec"]
Choice = Literal["host", "nvdec"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """The hardware decoders of a device.

    Attributes:
        device: Name of the GPU; None for the CPU.
        video: Codec -> limits, for each video codec that it decodes; empty if it decodes none.
        why_not: Reason why there is no video decoder; None if there is one.
        jpeg_engines: Number of JPEG engines; None if it is not known.
    """

    device: str | None = None
    video: Mapping[str, VideoLimits] = field(default_factory=dict)
    why_not: str | None = None
    jpeg_engines: int | None = None


def detect(device_id: int | None) -> Capabilities:
    """Ask the driver what a device can decode.

    Args:
        device_id: Number of the CUDA device, or None for the CPU.

    Returns:
        Its capabilities. A failure is not raised: it is the reason in `why_not`.
    """
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
    """Choose the decoder for the streams of a storage codec.

    Args:
        codec: Storage codec of the shards: `h264`, `hevc`, `remux` or `copy`.
        capabilities: What the device can decode.
        wish: Value of data.decoder: `auto`, `host` or `nvdec`.

    Returns:
        The decoder, and a sentence that names it and the reason. `nvdec` decodes all samples within its limits. The
        others, and samples of `remux` and `copy` in another codec, are decoded on the host.

    Raises:
        ValueError: `wish` is `nvdec`, but the device cannot decode the codec.
    """
    can = {name: limits for name, limits in capabilities.video.items() if codec in (name, *_ANY_STREAM)}
    if can and wish != "host":
        engines = ", ".join(f"{name}: {limits.engines} engines" for name, limits in can.items())
        return "nvdec", f"{codec} is decoded by NVDEC of {capabilities.device} ({engines})"
    why = "data.decoder=host" if wish == "host" else capabilities.why_not or f"{capabilities.device} does not decode it"
    if wish == "nvdec":
        raise ValueError(f"{codec} cannot be decoded by NVDEC: {why}")
    return "host", f"{codec} is decoded on the host: {why}"


def say_pictures(codec: str, capabilities: Capabilities, hw_decoder_load: float) -> str:
    """Describe what decodes stored pictures, which DALI can decode on every device.

    Args:
        codec: Storage codec of the shards.
        capabilities: What the device can decode.
        hw_decoder_load: Share of the pictures in [0, 1] for the JPEG engines of the GPU.

    Returns:
        A sentence for the log.
    """
    if capabilities.device is None:
        return f"{codec} is decoded on the host"
    if not capabilities.jpeg_engines:
        return f"{codec} is decoded by nvJPEG on {capabilities.device}, without JPEG engines"
    share = f"{hw_decoder_load:.0%} of it by {capabilities.jpeg_engines} JPEG engines"
    return f"{codec} is decoded by nvJPEG on {capabilities.device}, {share}"


class _DriverError(Exception):
    """A call to the driver failed."""


def _check(call: str, status: int) -> None:
    if status != 0:
        raise _DriverError(f"{call} of the NVIDIA driver failed with status {status}")


def _library(name: str) -> Any:
    """Load a shared library; return None if that fails."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


@contextmanager
def _device(driver: Any, device_id: int) -> Iterator[str]:
    """Make the primary context of a device, which torch and DALI share, current; yield the name of the device."""
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
    """CUVIDDECODECAPS, 88 bytes: the first three fields are the question, the driver fills in the others."""

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
        engines=max(1, caps.engines),  # old drivers leave this 0
        min_width=caps.min_width,
        min_height=caps.min_height,
        max_width=caps.max_width,
        max_height=caps.max_height,
        max_blocks=caps.max_blocks,
    )


def _jpeg_engines() -> int | None:
    """Ask nvJPEG how many JPEG engines the current device has; return None if it cannot tell (before CUDA 12).

    The library is loaded from the wheels of CUDA, or else from the system.
    """
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
