"""The DALI graph against torchvision and closed forms, on the same plans."""

import gc
import io
import weakref
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from rhofast.config.schema import AugmentConfig
from rhofast.data.decode.pipeline import DecodePipeline
from rhofast.data.types import AugmentPlan, ClipPlan, Sample
from rhofast.errors import UndecodableError

SIZE, WIDTH, HEIGHT = 48, 112, 80
UNIT = AugmentConfig(size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # output = pixel / 255


def picture(seed: int) -> npt.NDArray[np.uint8]:
    """A JPEG of structure at several scales."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(int)
    image = np.clip(image + rng.integers(-12, 12, image.shape), 0, 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=90)
    return np.frombuffer(sink.getvalue(), dtype=np.uint8)


def samples(count: int, frames: int) -> list[Sample]:
    return [
        Sample(
            sample=number,
            key=f"k{number}",
            label=None,
            pictures={frame: picture(100 * number + frame) for frame in range(frames)},
            bytes_read=0,
        )
        for number in range(count)
    ]


def decode(given: list[Sample]) -> list[Sample]:
    """The same samples as they come from a stream of video: RGB u8[H, W, 3]."""
    return [
        replace(sample, pictures={frame: rgb(encoded) for frame, encoded in sample.pictures.items()})
        for sample in given
    ]


def rgb(encoded: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(encoded.tobytes())))


def plan(b: int, p: int, **changes: npt.NDArray[np.generic]) -> AugmentPlan:
    rng = np.random.default_rng(b)
    w, h = rng.integers(20, WIDTH, (b, p)), rng.integers(20, HEIGHT, (b, p))
    left, top = rng.integers(0, WIDTH - w + 1), rng.integers(0, HEIGHT - h + 1)
    values = {
        "crop": np.stack([left, top, w, h], axis=-1).astype(np.float32),
        "flip": rng.random((b, p)) < 0.5,
        "color": np.broadcast_to(np.eye(3, 4, dtype=np.float32), (b, p, 3, 4)).copy(),
        "blur": np.zeros((b, p), dtype=np.float32),
    }
    return AugmentPlan(**{**values, **changes})  # type: ignore[arg-type]


def colorful(b: int, p: int) -> AugmentPlan:
    rng = np.random.default_rng(2)
    return plan(
        b,
        p,
        color=(np.eye(3, 4) + rng.normal(0, 0.1, (b, p, 3, 4))).astype(np.float32),
        blur=rng.uniform(0.2, 2, (b, p)).astype(np.float32),
    )


def run(section: AugmentConfig, given: list[Sample], clips: ClipPlan, augment: AugmentPlan, **graph: bool):
    pipeline = DecodePipeline(
        section,
        max_pictures=clips.frames.size,
        color=graph.get("color", False),
        blur=graph.get("blur", False),
        threads=2,
        decoded=graph.get("decoded", False),
        difference=graph.get("difference", False),
    )
    return pipeline.run(given, clips, augment)


def cropped(encoded: npt.NDArray[np.uint8], crop: npt.NDArray[np.float32], *, flip: bool) -> torch.Tensor:
    """torchvision's answer, u8[3, S, S]."""
    image = torch.from_numpy(rgb(encoded).copy()).permute(2, 0, 1)
    left, top, width, height = (int(value) for value in crop)
    out = tv.resized_crop(image, top, left, height, width, [SIZE, SIZE], antialias=True)
    return tv.horizontal_flip(out) if flip else out


@pytest.mark.parametrize("decoded", [False, True])
def test_crop_resize_and_flip_agree_with_torchvision(decoded: bool) -> None:
    given, clips = samples(4, 3), ClipPlan(frames=np.tile(np.arange(3, dtype=np.int32), (4, 2, 1)))
    augment = plan(4, 2)
    out = run(UNIT, decode(given) if decoded else given, clips, augment, decoded=decoded) * 255
    difference = torch.stack(
        [
            out[b, p, :, t] - cropped(given[b].pictures[t], augment.crop[b, p], flip=bool(augment.flip[b, p]))
            for b in range(4)
            for p in range(2)
            for t in range(3)
        ]
    ).abs()
    assert difference.max() <= 3
    assert difference.mean() <= 0.2


def test_color_is_the_matrix_clamped_once() -> None:
    given, clips = samples(3, 2), ClipPlan(frames=np.tile(np.arange(2, dtype=np.int32), (3, 2, 1)))
    rng = np.random.default_rng(1)
    color = (np.eye(3, 4) + rng.normal(0, 0.3, (3, 2, 3, 4))).astype(np.float32)
    color[..., 3] *= 60
    before = run(UNIT, given, clips, plan(3, 2)) * 255
    after = run(UNIT, given, clips, plan(3, 2, color=color), color=True) * 255
    matrix = torch.from_numpy(color)
    expected = torch.einsum("bpij,bpjthw->bpithw", matrix[..., :3], before) + matrix[..., 3][..., None, None, None]
    assert (after - expected.clamp(0, 255)).abs().max() <= 1e-3


def test_blur_agrees_with_torchvision_and_leaves_sigma_0_alone() -> None:
    given, clips = samples(4, 1), ClipPlan(frames=np.zeros((4, 2, 1), dtype=np.int32))
    sigmas = np.array([[0.0, 0.1], [0.4, 0.9], [1.3, 2.0], [0.0, 1.7]], dtype=np.float32)
    sharp = run(UNIT, given, clips, plan(4, 2)) * 255
    out = run(UNIT, given, clips, plan(4, 2, blur=sigmas), blur=True) * 255
    for b in range(4):
        for p in range(2):
            image, sigma = sharp[b, p, :, 0].round().to(torch.uint8), float(sigmas[b, p])
            kernel = 2 * int(np.ceil(2.5 * sigma)) + 1
            expected = image if sigma == 0 else tv.gaussian_blur(image, [kernel, kernel], [sigma, sigma])
            assert (out[b, p, :, 0] - expected).abs().max() <= (1.001 if sigma else 1e-3)


def test_normalization_is_exact() -> None:
    given, clips = samples(2, 2), ClipPlan(frames=np.zeros((2, 1, 2), dtype=np.int32))
    section = AugmentConfig(size=SIZE, mean=(0.45, 0.4, 0.3), std=(0.225, 0.2, 0.25))
    plain = run(UNIT, given, clips, plan(2, 1)).mul(255).round()
    mean, std = (torch.tensor(value).view(3, 1, 1, 1) for value in (section.mean, section.std))
    expected = (plain - 255 * mean) / (255 * std)
    assert torch.allclose(run(section, given, clips, plan(2, 1)), expected, atol=1e-5)


def test_all_frames_of_a_clip_get_the_same_treatment_and_clips_their_own() -> None:
    still = samples(1, 1)[0]
    given = [Sample(sample=0, key="k", label=None, bytes_read=0, pictures=dict.fromkeys(range(3), still.pictures[0]))]
    clips = ClipPlan(frames=np.tile(np.arange(3, dtype=np.int32), (1, 2, 1)))
    blur = np.array([[0.0, 1.5]], dtype=np.float32)
    out = run(UNIT, given, clips, plan(1, 2, blur=blur), color=True, blur=True)
    assert torch.equal(out[0, 0, :, 0], out[0, 0, :, 2]) and torch.equal(out[0, 1, :, 0], out[0, 1, :, 2])
    assert not torch.equal(out[0, 0, :, 0], out[0, 1, :, 0])


def test_output_is_a_channels_last_view() -> None:
    given, clips = samples(2, 2), ClipPlan(frames=np.tile(np.arange(2, dtype=np.int32), (2, 2, 1)))
    out = run(UNIT, given, clips, plan(2, 2))
    assert out.shape == (2, 2, 3, 2, SIZE, SIZE) and out.dtype == torch.float32
    assert out.flatten(0, 1).is_contiguous(memory_format=torch.channels_last_3d)


def test_batches_of_any_size_up_to_the_largest_and_kept_outputs_stay_intact() -> None:
    pipeline = DecodePipeline(UNIT, max_pictures=8, color=False, blur=False, threads=2)
    kept = []
    for count in (4, 1, 3):
        given, clips = samples(count, 2), ClipPlan(frames=np.tile(np.arange(2, dtype=np.int32), (count, 1, 1)))
        out = pipeline.run(given, clips, plan(count, 1))
        kept.append((out, out.clone()))
    for out, copy in kept:
        assert torch.equal(out, copy)


def test_a_refused_picture_raises_and_the_next_batch_is_right() -> None:
    pipeline = DecodePipeline(UNIT, max_pictures=4, color=False, blur=False, threads=1)
    good, clips = samples(2, 1), ClipPlan(frames=np.zeros((2, 1, 1), dtype=np.int32))
    expected = pipeline.run(good, clips, plan(2, 1))
    broken = Sample(sample=1, key="x", label=None, bytes_read=0, pictures={0: np.zeros(50, dtype=np.uint8)})
    with pytest.raises(UndecodableError) as refusal:
        pipeline.run([good[0], broken], clips, plan(2, 1))
    assert list(refusal.value.reasons) == [1] and refusal.value.reasons[1]
    assert torch.equal(pipeline.run(good, clips, plan(2, 1)), expected)


def test_pictures_are_fed_without_a_copy_and_kept_until_they_are_decoded() -> None:
    pipeline = DecodePipeline(UNIT, max_pictures=4, color=False, blur=False, threads=1)
    given, clips, augment = samples(2, 2), ClipPlan(frames=np.tile(np.arange(2, dtype=np.int32), (2, 1, 1))), plan(2, 1)
    expected = pipeline.decode(given, clips, augment).clone()
    given = [
        replace(sample, pictures={frame: encoded.copy() for frame, encoded in sample.pictures.items()})
        for sample in given
    ]
    arrays = [weakref.ref(encoded) for sample in given for encoded in sample.pictures.values()]
    sizes = [encoded.size for sample in given for encoded in sample.pictures.values()]
    graph, run = pipeline._pipeline, pipeline._pipeline.schedule_run

    def reuse_memory() -> None:
        given.clear()
        gc.collect()
        assert all(array() is not None for array in arrays)  # a copy would have let them go
        others = [np.full(size, 255, dtype=np.uint8) for size in sizes * 20]
        run()
        assert others

    graph.schedule_run = reuse_memory
    assert torch.equal(pipeline._run(graph, given, clips, augment), expected)
    graph.schedule_run = run
    pipeline.decode(samples(2, 2), clips, augment)
    gc.collect()
    assert not any(array() is not None for array in arrays)  # and nothing is kept for longer


def test_a_device_that_fails_is_not_blamed_on_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = DecodePipeline(UNIT, max_pictures=4, color=False, blur=False, threads=1)
    good, clips = samples(2, 1), ClipPlan(frames=np.zeros((2, 1, 1), dtype=np.int32))
    expected = pipeline.run(good, clips, plan(2, 1))
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "_take", Mock(side_effect=error))
        with pytest.raises(RuntimeError) as caught:
            pipeline.decode(good, clips, plan(2, 1))
    assert caught.value is error
    assert torch.equal(pipeline.run(good, clips, plan(2, 1)), expected)


@pytest.mark.parametrize("decoded", [False, True])
def test_a_difference_is_of_luma_around_middle_gray(decoded: bool) -> None:
    given, frames = samples(3, 3), np.tile(np.arange(2, dtype=np.int32), (3, 2, 1))
    given = decode(given) if decoded else given
    differs = np.array([[True, False], [False, False], [True, True]])
    augment = plan(3, 2, difference=differs)
    clips = ClipPlan(frames=frames, neighbor=np.where(differs[..., None], frames + 1, frames))
    frame, neighbor = (
        run(UNIT, given, ClipPlan(frames=some), augment, decoded=decoded) * 255 for some in (frames, frames + 1)
    )
    out = run(UNIT, given, clips, augment, decoded=decoded, difference=True) * 255
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)
    expected = ((255 + ((frame - neighbor) * luma).sum(dim=2, keepdim=True)) / 2).expand(frame.shape)
    mask = torch.from_numpy(differs)
    assert (out[mask] - expected[mask]).abs().max() <= 0.51
    assert torch.equal(out[~mask], frame[~mask])


def test_decoded_pictures_get_the_color_and_blur_that_encoded_ones_get() -> None:
    given, clips = samples(4, 2), ClipPlan(frames=np.tile(np.arange(2, dtype=np.int32), (4, 2, 1)))
    augment = colorful(4, 2)
    encoded = run(UNIT, given, clips, augment, color=True, blur=True)
    decoded = run(UNIT, decode(given), clips, augment, color=True, blur=True, decoded=True)
    difference = (encoded - decoded).abs() * 255
    assert difference.max() <= 5 and difference.mean() <= 0.2


def test_decoded_pictures_of_several_sizes_in_batches_of_several_sizes_stay_apart() -> None:
    pipeline = DecodePipeline(UNIT, max_pictures=8, color=False, blur=False, threads=2, decoded=True)
    kept = []
    for count in (4, 1, 3):
        pictures = [np.full((60 + 8 * n, 100 - 4 * n, 3), 10 * n + count, dtype=np.uint8) for n in range(count)]
        given = [
            Sample(sample=n, key=f"k{n}", label=None, bytes_read=0, pictures={5: pictures[n]}) for n in range(count)
        ]
        crop = np.array([[[0, 0, picture.shape[1], picture.shape[0]]] for picture in pictures], dtype=np.float32)
        clips = ClipPlan(frames=np.full((count, 1, 2), 5, dtype=np.int32))
        kept.append(pipeline.run(given, clips, plan(count, 1, crop=crop)) * 255)
        del given, pictures  # the graph has them, without a copy, for as long as it needs them
    for out, count in zip(kept, (4, 1, 3), strict=True):
        expected = torch.arange(count).view(-1, 1, 1, 1, 1, 1) * 10 + count
        assert torch.allclose(out, expected.expand(out.shape).float(), atol=1e-3)


class ScriptedGraph:
    """A graph that writes down what is done with it; the values of its output are the number of pictures it was fed."""

    def __init__(self, events: list[str]) -> None:
        self._events, self._fed, self._running = events, 0, list[int]()

    def feed_input(self, name: str, values: list[object], **_: object) -> None:
        if name == "pictures":
            self._fed = len(values)
            self._events.append(f"feed {self._fed}")

    def schedule_run(self) -> None:
        self._running.append(self._fed)
        self._events.append(f"run {self._fed}")

    def share_outputs(self, stream: object) -> list[Mock]:
        assert stream is None
        pictures = self._running.pop(0)
        self._events.append(f"take {pictures}")
        return [Mock(as_tensor=lambda: torch.full((pictures, SIZE, SIZE, 3), float(pictures)))]

    def release_outputs(self) -> None:
        pass


@pytest.mark.parametrize("ahead", [False, True])
def test_the_next_batch_is_fed_while_the_one_before_runs(monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
    events: list[str] = []
    monkeypatch.setattr("rhofast.data.decode.pipeline._build_graph", lambda *_, **__: ScriptedGraph(events))
    pipeline = DecodePipeline(UNIT, max_pictures=9, color=True, blur=False, threads=1, ahead=ahead)
    given = {b: (samples(b, 1), ClipPlan(frames=np.zeros((b, 1, 1), dtype=np.int32)), plan(b, 1)) for b in (1, 2, 3)}
    before = pipeline.start(*given[1])
    for batch in (2, 3):
        started = pipeline.start(*given[batch])
        assert pipeline.collect(before).unique().tolist() == [batch - 1]
        before = started
    assert pipeline.collect(before).unique().tolist() == [3]
    feed = [[f"feed {batch}", f"run {batch}"] for batch in (1, 2, 3)]
    if ahead:
        assert events == [*feed[0], *feed[1], "take 1", *feed[2], "take 2", "take 3"]
    else:
        assert events == [*feed[0], "take 1", *feed[1], "take 2", *feed[2], "take 3"]


def test_batches_that_are_fed_ahead_are_the_same_and_stay_intact() -> None:
    pipeline = DecodePipeline(UNIT, max_pictures=8, color=True, blur=True, threads=2, ahead=True)
    alone = DecodePipeline(UNIT, max_pictures=8, color=True, blur=True, threads=2)
    given = []
    for count in (4, 1, 3, 2):
        clips = ClipPlan(frames=np.tile(np.arange(2, dtype=np.int32), (count, 1, 1)))
        given.append((samples(count, 2), clips, colorful(count, 1)))
    started = [pipeline.start(*batch) for batch in given]
    # One is collected before another that came before it, and one is not collected at all.
    out = {number: pipeline.collect(started[number]) for number in (1, 0, 3)}
    for number, pixels in out.items():
        assert torch.equal(pixels, alone.decode(*given[number]))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 1, 3, 0)])
def test_a_refused_picture_is_named_in_its_own_batch_while_others_are_in_flight(order: tuple[int, ...]) -> None:
    graphs = {"max_pictures": 4, "color": False, "blur": False, "threads": 2}
    pipeline, alone = DecodePipeline(UNIT, **graphs, ahead=True), DecodePipeline(UNIT, **graphs)
    clips, augment = ClipPlan(frames=np.zeros((3, 1, 1), dtype=np.int32)), plan(3, 1)
    batches = [
        [replace(sample, pictures={0: picture(10 * batch + sample.sample)}) for sample in samples(3, 1)]
        for batch in range(4)
    ]
    expected = [alone.decode(batch, clips, augment) for batch in batches]
    batches[1][2] = replace(batches[1][2], pictures={0: batches[1][2].pictures[0][:900]})
    for _ in range(3):
        started = [pipeline.start(batch, clips, augment) for batch in batches]
        for number in order:
            if number == 1:
                with pytest.raises(UndecodableError) as refusal:
                    pipeline.collect(started[1])
                assert list(refusal.value.reasons) == [2]
            else:
                assert torch.equal(pipeline.collect(started[number]), expected[number])


def test_a_batch_that_cannot_be_fed_costs_no_other() -> None:
    pipeline = DecodePipeline(UNIT, max_pictures=2, color=False, blur=False, threads=1, ahead=True)
    given = samples(2, 1), ClipPlan(frames=np.zeros((2, 1, 1), dtype=np.int32)), plan(2, 1)
    expected = pipeline.decode(*given)
    error = RuntimeError("no pinned memory is left")
    first = pipeline.start(*given)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipeline, "arguments", Mock(side_effect=error))  # when the pictures are fed already
        second = pipeline.start(*given)
    third = pipeline.start(*given)
    assert torch.equal(pipeline.collect(first), expected)
    with pytest.raises(RuntimeError) as caught:
        pipeline.collect(second)
    assert caught.value is error
    assert torch.equal(pipeline.collect(third), expected)


@pytest.mark.needs_gpu
@pytest.mark.parametrize("decoded", [False, True])
def test_the_gpu_graph_agrees_with_the_cpu_graph(decoded: bool) -> None:
    given, clips = samples(4, 2), ClipPlan(frames=np.tile(np.arange(2, dtype=np.int32), (4, 2, 1)))
    given, augment = decode(given) if decoded else given, colorful(4, 2)
    host = run(UNIT, given, clips, augment, color=True, blur=True, decoded=decoded)
    pipeline = DecodePipeline(UNIT, max_pictures=16, color=True, blur=True, threads=2, device_id=0, decoded=decoded)
    difference = (pipeline.run(given, clips, augment).cpu() - host).abs() * 255
    assert difference.max() <= 8 and difference.mean() <= 0.5
