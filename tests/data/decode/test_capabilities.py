"""What a GPU can decode is asked of its driver; here, of stand-ins for its libraries."""

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from rhofast.data.decode import capabilities
from rhofast.data.decode.capabilities import Capabilities, choose_decoder, detect
from rhofast.data.decode.video_limits import VideoLimits

HOPPER = VideoLimits(engines=7, min_width=48, min_height=16, max_width=4096, max_height=4096, max_blocks=65536)


class Driver:
    """libcuda with one device; `fails` names the call that does."""

    def __init__(self, fails: str | None = None) -> None:
        self.fails, self.calls = fails, list[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cuDeviceGetName":
                arguments[0].value = b"NVIDIA H200"
            return 100 if name == self.fails else 0

        return call


class Decoder:
    """libnvcuvid that decodes the codecs of these numbers, by the offsets of the driver's own header."""

    def __init__(self, *codecs: int, engines: int = 7) -> None:
        self.codecs, self.engines = codecs, engines

    def cuvidGetDecoderCaps(self, argument: Any) -> int:  # noqa: N802
        raw = (ctypes.c_ubyte * 88).from_buffer(argument._obj)
        assert raw[4] == 1 and raw[8] == 0, "4:2:0, 8 bits"
        if raw[0] in self.codecs:
            raw[24], raw[25] = 1, self.engines
            for offset, size, value in ((28, 4, 4096), (32, 4, 4096), (36, 4, 65536), (40, 2, 48), (42, 2, 16)):
                raw[offset : offset + size] = list(value.to_bytes(size, "little"))
        return 0


def nvjpeg(engines: int, *, status: int = 0) -> Any:
    def info(handle: Any, count: Any, cores: Any) -> int:
        count._obj.value = engines
        return status

    return SimpleNamespace(
        nvjpegCreateSimple=lambda handle: 0, nvjpegGetHardwareDecoderInfo=info, nvjpegDestroy=lambda handle: 0
    )


def install(monkeypatch: pytest.MonkeyPatch, **libraries: Any) -> None:
    """Only these libraries are there: by the start of their file's name."""

    def library(name: str) -> Any:
        return libraries.get(name.rsplit("/", 1)[-1].partition(".")[0])

    monkeypatch.setattr(capabilities, "_library", library)


def test_what_the_driver_says_is_read_from_its_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, libcuda=Driver(), libnvcuvid=Decoder(4, 8), libnvjpeg=nvjpeg(4))
    assert ctypes.sizeof(capabilities._DecodeCaps) == 88
    assert detect(0) == Capabilities(device="NVIDIA H200", video={"h264": HOPPER, "hevc": HOPPER}, jpeg_engines=4)


def test_a_codec_that_is_not_decoded_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, libcuda=Driver(), libnvcuvid=Decoder(4, engines=0))
    found = detect(0)
    assert list(found.video) == ["h264"] and found.video["h264"].engines == 1
    assert choose_decoder("hevc", found) == ("host", "hevc is decoded on the host: NVIDIA H200 does not decode it")
    install(monkeypatch, libcuda=Driver(), libnvcuvid=Decoder())
    assert detect(0).why_not == "NVIDIA H200 decodes none of h264, hevc"


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert detect(None).why_not == "this runs on the CPU"
    install(monkeypatch)
    assert detect(0).why_not == "libcuda.so.1 is not installed: there is no NVIDIA driver"
    install(monkeypatch, libcuda=Driver())
    found = detect(0)
    assert found.device == "NVIDIA H200" and not found.video
    assert choose_decoder("h264", found)[1] == (
        "h264 is decoded on the host: libnvcuvid.so.1 is not installed "
        "(in a container, set NVIDIA_DRIVER_CAPABILITIES=compute,video,utility)"
    )


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2"])
def test_a_driver_that_refuses_means_the_host(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    driver = Driver(fails=call)
    install(monkeypatch, libcuda=driver, libnvcuvid=Decoder(4))
    found = detect(0)
    assert not found.video
    assert found.why_not == f"{call.removesuffix('_v2')} of the NVIDIA driver failed with status 100"
    assert ("cuDevicePrimaryCtxRelease_v2" in driver.calls) == (call == "cuCtxPushCurrent_v2")


def test_the_context_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    install(monkeypatch, libcuda=driver, libnvcuvid=Decoder(4))
    detect(0)
    assert driver.calls[-2:] == ["cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2"]


def test_engines_for_jpeg_may_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, libcuda=Driver(), libnvcuvid=Decoder(4), libnvjpeg=nvjpeg(0))
    assert detect(0).jpeg_engines == 0
    refusing, old = nvjpeg(4, status=1), SimpleNamespace(nvjpegCreateSimple=lambda handle: 0)
    failing = SimpleNamespace(nvjpegCreateSimple=lambda handle: 1, nvjpegGetHardwareDecoderInfo=None)
    for library in (refusing, old, failing):
        install(monkeypatch, libcuda=Driver(), libnvcuvid=Decoder(4), libnvjpeg=library)
        assert detect(0).jpeg_engines is None


def test_this_machine_is_described_without_an_error() -> None:
    found = detect(0)
    assert found.video or found.why_not


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        ((48, 16), True),
        ((47, 15), True),  # in whole blocks, 48x16
        ((32, 64), False),
        ((4096, 4096), True),
        ((4097, 64), False),
        ((64, 4097), False),
    ],
)
def test_sizes_are_counted_in_whole_blocks(size: tuple[int, int], fits: bool) -> None:
    assert HOPPER.fit(*size) is fits


def test_the_number_of_blocks_is_a_limit_of_its_own() -> None:
    limits = VideoLimits(engines=1, min_width=16, min_height=16, max_width=4096, max_height=4096, max_blocks=8160)
    assert limits.fit(1920, 1080) and not limits.fit(1936, 1088)


def test_who_decodes_is_chosen_and_said_with_the_reason() -> None:
    both = Capabilities(device="NVIDIA H200", video={"h264": HOPPER, "hevc": HOPPER})
    assert choose_decoder("h264", both) == ("nvdec", "h264 is decoded by NVDEC of NVIDIA H200 (h264: 7 engines)")
    choice, sentence = choose_decoder("copy", both, "nvdec")
    assert choice == "nvdec" and "h264: 7 engines, hevc: 7 engines" in sentence
    assert choose_decoder("h264", both, "host") == ("host", "h264 is decoded on the host: data.decoder=host")


def test_a_wish_that_cannot_be_met_is_an_error() -> None:
    with pytest.raises(ValueError, match="h264 cannot be decoded by NVDEC: this runs on the CPU"):
        choose_decoder("h264", detect(None), "nvdec")
