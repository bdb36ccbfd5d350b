"""DALI's video decoder, on the CPU with VP9: the graph that NVDEC runs in too, on streams that are trimmed alike."""

from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rhofast.data.codecs import CODECS
from rhofast.data.codecs.h26x import _FRAGMENTED, _GroupCodec
from rhofast.data.codecs.stream_copy import CopyCodec
from rhofast.data.decode.video_decoder import VideoDecoder
from rhofast.data.decode.video_limits import VideoLimits
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.reader import Reader
from rhofast.data.types import Sample, Stream
from rhofast.errors import DecodeError, UndecodableError
from tests.helpers.shards import STREAMS, encode_mjpeg, encode_stream, frame_pixels, write_shards

NUM_VIDEOS, NUM_FRAMES = 4, 24
ANY_SIZE = VideoLimits(engines=1, min_width=16, min_height=16, max_width=4096, max_height=4096, max_blocks=65536)
LIMITS = {"vp9": ANY_SIZE}


class Vp9Codec(_GroupCodec):
    """As `h264` stores a video, but in a codec that DALI decodes on the CPU."""

    name: ClassVar[str] = "vp9"
    streams: ClassVar[tuple[str, ...]] = ("vp9",)

    def encoder_arguments(self) -> dict[str, Any]:
        options = {"vcodec": "libvpx-vp9", "crf": 4, "b:v": 0, "g": self.gop, "lag-in-frames": 0, "auto-alt-ref": 0}
        return {**options, "speed": 8, **_FRAGMENTED}


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    out = tmp_path_factory.mktemp("vp9") / "video.mp4"
    videos = [[frame_pixels(video, frame) for frame in range(NUM_FRAMES)] for video in range(NUM_VIDEOS)]
    return [encode_stream(frames, Vp9Codec(gop=5), out) for frames in videos]


@pytest.fixture(params=["groups", "copy"])
def vp9_shards(
    request: pytest.FixtureRequest, tmp_path: Path, members: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> ShardSet:
    monkeypatch.setitem(CODECS, "vp9", Vp9Codec)
    # The host's VP9 decoder cannot be told to skip all but the key frames.
    monkeypatch.setattr("rhofast.data.codecs.h26x.key_frame_colors", lambda file: np.zeros((-(-NUM_FRAMES // 5), 3)))
    return write_shards(tmp_path / "set", members, codec=Vp9Codec(gop=5) if request.param == "groups" else CopyCodec())


def given(stream: Stream | None, number: int = 0, **pictures: npt.NDArray[np.uint8]) -> Sample:
    shown = {int(name[1:]): picture for name, picture in pictures.items()}
    return Sample(sample=number, key=f"v{number}", label=None, pictures=shown, bytes_read=0, stream=stream)


def stream_of(content: bytes, *frames: int) -> Stream:
    numbers = np.array(frames, dtype=np.int32)
    return Stream(content=np.frombuffer(content, dtype=np.uint8), wanted=numbers, frames=numbers)


def shown(frames: dict[int, torch.Tensor]) -> dict[int, tuple[int, int]]:
    """For each frame, the (frame, video) that its pixels name."""
    for picture in frames.values():
        assert picture.dtype == torch.uint8 and picture.shape == (48, 64, 3) and picture.is_contiguous()
    means = {frame: picture.float().mean(dim=(0, 1)) / 8 for frame, picture in frames.items()}
    return {frame: (round(float(mean[0])), round(float(mean[1]))) for frame, mean in means.items()}


PLANS = {
    "one": [13],
    "overlapping": [4, 6, 8, 10, 6, 8, 10, 12],
    "ends": [0, 23],
    "all": list(range(24)),
    **{f"random {n}": np.random.default_rng(n).integers(0, 24, 6).tolist() for n in range(8)},
}


def test_each_frame_is_the_one_asked_for(vp9_shards: ShardSet) -> None:
    reader, decoder = Reader(vp9_shards, LIMITS), VideoDecoder(max_samples=4, threads=2)
    for number, (name, frames) in enumerate(PLANS.items()):
        videos = [(number + more) % NUM_VIDEOS for more in range(number % 4 + 1)]  # batches of 1 to 4
        plans = {video: np.array([frame - video % 2 for frame in frames], dtype=np.int32) % 24 for video in videos}
        samples = [reader.read(video, plan) for video, plan in plans.items()]
        assert all(sample.stream is not None and not sample.pictures for sample in samples)
        for (video, plan), decoded in zip(plans.items(), decoder.decode(samples), strict=True):
            assert shown(decoded) == {int(frame): (frame, video) for frame in np.unique(plan)}, name


def test_trimmed_streams_give_the_pixels_of_the_whole(vp9_shards: ShardSet, members: list[bytes]) -> None:
    frames = np.array([2, 3, 17, 21], dtype=np.int32)
    sample, whole = Reader(vp9_shards, LIMITS).read(1, frames), given(stream_of(members[1], *frames.tolist()))
    assert sample.stream is not None and sample.stream.content.size < len(members[1])
    trimmed, expected = VideoDecoder(max_samples=2, threads=1).decode([sample, whole])
    assert list(trimmed) == list(expected) == frames.tolist()
    assert all(torch.equal(trimmed[frame], expected[frame]) for frame in expected)


def test_a_stream_is_read_by_the_same_bytes_as_on_the_host(vp9_shards: ShardSet) -> None:
    frames = np.array([7, 8, 22], dtype=np.int32)
    device, host = (Reader(vp9_shards, limits).read(2, frames) for limits in (LIMITS, None))
    assert device.bytes_read == host.bytes_read
    assert list(host.pictures) == frames.tolist() and host.stream is None


def test_what_is_outside_the_limits_is_decoded_on_the_host(vp9_shards: ShardSet) -> None:
    small = VideoLimits(engines=1, min_width=16, min_height=16, max_width=48, max_height=48, max_blocks=9)
    for limits in ({"vp9": small}, {"h264": ANY_SIZE}):
        sample = Reader(vp9_shards, limits).read(0, np.array([3], dtype=np.int32))
        assert sample.stream is None and list(sample.pictures) == [3]


def test_a_batch_may_mix_both_kinds(members: list[bytes]) -> None:
    picture = frame_pixels(3, 9)
    decoder = VideoDecoder(max_samples=3, threads=1)
    first, second, third = decoder.decode(
        [given(stream_of(members[0], 5)), given(None, f9=picture), given(stream_of(members[2], 1, 2))]
    )
    assert shown(first) == {5: (5, 0)} and shown(third) == {1: (1, 2), 2: (2, 2)}
    assert torch.equal(second[9], torch.from_numpy(picture))
    assert decoder.decode([given(None, f9=picture)])[0][9].shape == (48, 64, 3)


def test_motion_jpeg_goes_the_same_way() -> None:
    content = encode_mjpeg([frame_pixels(1, frame) for frame in range(6)])
    (frames,) = VideoDecoder(max_samples=1, threads=1).decode([given(stream_of(content, 0, 4, 5))])
    assert shown(frames) == {0: (0, 1), 4: (4, 1), 5: (5, 1)}


def test_frames_stay_while_later_batches_are_decoded(members: list[bytes]) -> None:
    decoder = VideoDecoder(max_samples=2, threads=1)
    kept = decoder.decode([given(stream_of(members[0], 3, 4)), given(stream_of(members[1], 20))])
    copies = [{frame: picture.clone() for frame, picture in frames.items()} for frames in kept]
    for frame in range(12):
        decoder.decode([given(stream_of(members[2], frame))])
    for frames, copy in zip(kept, copies, strict=True):
        assert all(torch.equal(frames[frame], copy[frame]) for frame in copy)


def test_refused_streams_are_named_and_the_decoder_goes_on(members: list[bytes], capfd: Any) -> None:
    decoder, good = VideoDecoder(max_samples=4, threads=2), given(stream_of(members[0], 5))
    broken, late = given(stream_of(bytes(500), 0)), given(stream_of(members[1], 3, NUM_FRAMES))
    for _ in range(3):
        with pytest.raises(UndecodableError) as caught:
            decoder.decode([good, broken, given(None, f0=frame_pixels(0, 0)), late])
        assert list(caught.value.reasons) == [1, 3]
        assert "Failed to create video decoder" in caught.value.reasons[1]
        assert "out-of-bounds frame index 24" in caught.value.reasons[3]
        assert shown(decoder.decode([good])[0]) == {5: (5, 0)}


def test_a_frame_past_the_end_is_noticed_before_the_device_sees_it(vp9_shards: ShardSet) -> None:
    with pytest.raises(DecodeError, match="frame 24 cannot be decoded") as caught:
        Reader(vp9_shards, LIMITS).read(3, np.array([1, 24], dtype=np.int32))
    assert caught.value.key == "v3"


def test_a_video_of_one_frame_and_one_of_an_odd_width(tmp_path: Path) -> None:
    out, codec = tmp_path / "video.mp4", Vp9Codec(gop=5)
    one = encode_stream([frame_pixels(2, 7)], codec, out)
    narrow = encode_stream([frame_pixels(1, frame, 50, 34) for frame in range(6)], codec, out)
    decoder = VideoDecoder(max_samples=2, threads=1)
    frames, others = decoder.decode([given(stream_of(one, 0)), given(stream_of(narrow, 5))])
    assert shown(frames) == {0: (7, 2)}
    assert others[5].shape == (34, 50, 3) and round(float(others[5][..., 0].float().mean()) / 8) == 5


def test_a_device_that_fails_is_not_blamed_on_streams(members: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, good = VideoDecoder(max_samples=4, threads=1), [given(stream_of(members[0], frame)) for frame in (1, 2)]
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with monkeypatch.context() as patched:
        patched.setattr(decoder, "_run", Mock(side_effect=error))
        with pytest.raises(RuntimeError) as caught:
            decoder.decode(good)
    assert caught.value is error
    assert shown(decoder.decode(good)[0]) == {1: (1, 0)}


@pytest.mark.needs_gpu
@pytest.mark.parametrize("name", ["h264", "hevc", "copy"])
def test_nvdec_gives_the_frames_that_the_host_gives(name: str, tmp_path: Path) -> None:
    from rhofast.data.decode.capabilities import detect

    found = detect(0)
    assert found.video, found.why_not
    # NVDEC decodes no HEVC below 144 x 144.
    videos = [[frame_pixels(video, frame, 176, 160) for frame in range(NUM_FRAMES)] for video in range(NUM_VIDEOS)]
    codec, out = STREAMS[name], tmp_path / "video.mp4"
    stored = write_shards(tmp_path / "set", [encode_stream(frames, codec, out) for frames in videos], codec=codec)
    host, device = Reader(stored), Reader(stored, found.video)
    decoder = VideoDecoder(max_samples=4, threads=4, device_id=0)
    frames = np.array([2, 5, 9, 20], dtype=np.int32)
    samples = [device.read(number, frames) for number in range(4)]
    assert all(sample.stream is not None for sample in samples)
    for number, decoded in enumerate(decoder.decode(samples)):
        expected = host.read(number, frames).pictures
        assert {picture.device for picture in decoded.values()} == {torch.device("cuda:0")}
        for frame, picture in expected.items():
            off = np.abs(decoded[frame].cpu().numpy().astype(int) - picture)
            assert off.mean() < 2, (number, frame)
