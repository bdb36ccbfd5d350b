"""The graphs of a GPU in their serialized form: which operators there are, in which order, and where each runs.

A loader's decoders are built for a GPU as they would be on one, for every storage codec, with and without NVDEC, and
for every combination of differences, color and blur. Without a GPU, DALI defines, checks and serializes the graphs, and
only refuses to build them.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rhofast.config.schema import AugmentConfig, DataConfig
from rhofast.data.codecs import CODECS, build_codec, codec_settings
from rhofast.data.decode import pipeline as pictures_graph
from rhofast.data.decode import video_decoder as video_graph
from rhofast.data.decode.capabilities import VIDEO_CODECS, Capabilities
from rhofast.data.decode.video_limits import VideoLimits
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.dataset_json import DatasetInfo
from rhofast.data.loader import decoders
from rhofast.data.sampling.mixture import Mixture
from tests.helpers.dali_graph import Operator, parse, serialize

LIMITS = VideoLimits(engines=7, min_width=48, min_height=16, max_width=4096, max_height=4096, max_blocks=65536)
GPUS = {
    "with NVDEC": Capabilities(device="some GPU", video=dict.fromkeys(VIDEO_CODECS, LIMITS), jpeg_engines=8),
    "without": Capabilities(device="some GPU", why_not="libnvcuvid.so.1 is not installed"),
}
# Operators that copy no pixels and run where their inputs are.
ROUTES = ("_conditional__Split", "_conditional__Merge")

Build = Callable[..., list[tuple[dict[str, Operator], list[tuple[str, str]]]]]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Build:
    """Return a function that builds a loader's decoders for a GPU, and parses their graphs: NVDEC's first, if any."""
    forms: list[bytes] = []

    def keep(define: Callable[..., Any]) -> Callable[..., object]:
        def graph(*given: Any, **options: Any) -> object:
            forms.append(serialize(define(*given, **options)))
            return object()

        return graph

    def decoders_of(codec: str, gpu: str, *, blur: bool, color: bool, difference: bool, sizes: bool = False) -> Any:
        monkeypatch.setattr(decoders, "detect", lambda device_id: GPUS[gpu])
        stored = codec_settings(build_codec({"name": codec}))
        info = DatasetInfo(name="", split="", codecs=[stored], classes=[], shards=[], refused={}, build="")
        probability = {"color": 0.8 * color, "gray": 0.2 * color, "blur": 0.5 * blur, "difference": 0.2 * difference}
        forms.clear()
        decoders.Decoders(
            Mixture([ShardSet(Path("nowhere"), info)]),
            AugmentConfig(size=16, **probability),
            DataConfig(hw_decoder_load=0.25, decode_threads=3),
            max_videos=4,
            max_pictures=64,
            random_appearance=True,
            device_id=0,
            dtype=torch.float16,
            sizes=sizes,
        )
        return [parse(form) for form in forms]

    monkeypatch.setattr(pictures_graph, "_build_graph", keep(pictures_graph.define_graph))
    monkeypatch.setattr(video_graph, "_build_graph", keep(video_graph.define_video_graph))
    return decoders_of


def sources(ops: dict[str, Operator], op: Operator) -> Iterator[Operator]:
    """Yield the operators that made the inputs of one, past those that only route them."""
    for name, _ in op.inputs:
        maker = next(other for other in ops.values() if name in [output for output, _ in other.outputs])
        yield from sources(ops, maker) if maker.kind in ROUTES else [maker]


def of(ops: dict[str, Operator], *kinds: str) -> list[Operator]:
    return [op for op in ops.values() if op.kind in kinds]


@pytest.mark.parametrize("gpu", list(GPUS))
@pytest.mark.parametrize("codec", list(CODECS))
@pytest.mark.parametrize(("difference", "color", "blur"), list(itertools.product([False, True], repeat=3)))
def test_every_graph_decodes_whole_pictures_on_the_gpu_and_crops_them_there(
    build: Build, codec: str, gpu: str, difference: bool, color: bool, blur: bool
) -> None:
    graphs = build(codec, gpu, difference=difference, color=color, blur=blur)
    stored_as_pictures = build_codec({"name": codec}).pictures
    nvdec = gpu == "with NVDEC" and not stored_as_pictures
    assert len(graphs) == 1 + nvdec
    ops, outputs = graphs[-1]
    branches = 1 + difference
    inputs = ["pictures", "neighbors"][:branches]

    decoders = [op for op in ops.values() if "decoder" in op.kind]
    # A decoder of regions fails or crashes on some GPUs (NVIDIA/nvImageCodec#55): there is none.
    assert [op.kind for op in decoders] == ["decoders__Image"] * (branches if stored_as_pictures else 0)
    for op in decoders:
        assert op.device == "mixed" and not op.arguments
        assert op.options["jpeg_fancy_upsampling"] is True and op.options["adjust_orientation"] is False
        assert op.options["hw_decoder_load"] == 0.25
        assert [source.kind for source in sources(ops, op)] == ["ExternalSource"]

    slices = of(ops, "Slice")
    assert len(slices) == branches
    for op in slices:
        # Frames that the host decoded are cropped there, and only the crops are copied to the GPU.
        assert op.device == ("gpu" if stored_as_pictures or nvdec else "cpu")
        assert op.options["axis_names"] == "WH" and len(op.arguments) == 2
        (source,) = sources(ops, op)
        assert source in decoders if stored_as_pictures else ops[inputs[slices.index(op)]] is source

    resizes = of(ops, "Resize")
    assert [list(sources(ops, op)) for op in resizes] == [[op] for op in slices]
    assert all(op.inputs[0][1] == "gpu" for op in resizes)
    for op in ops.values():
        if op.kind not in ("ExternalSource", "Slice", "decoders__Image", *ROUTES):
            assert op.device == "gpu" and all(device == "gpu" for _, device in op.outputs), op
        if op.kind in ROUTES:  # what is routed on the host is an input, and no picture that was decoded
            assert op.device == "gpu" or all(source.kind == "ExternalSource" for source in sources(ops, op))

    last = list(ops.values())[-1]
    assert outputs == [(last.outputs[0][0], "gpu")]
    assert last.kind == ("CoordTransform" if color else "CropMirrorNormalize")
    (image,) = (ops[name] for name in ops if name == last.inputs[0][0])
    assert image.kind == ("_conditional__Merge" if difference else "Resize")
    for name in inputs:
        assert ops[name].device == ("gpu" if nvdec else "cpu")
        assert ops[name].options.get("no_copy", False) is not nvdec
    numbers = {"start", "shape", "from", "to"} | ({"matrix", "offset"} if color else set())
    numbers |= {"differs"} if difference else set()
    assert {name for name, op in ops.items() if op.kind == "ExternalSource"} == {*inputs, *numbers}
    assert all(ops[name].device == "cpu" for name in numbers)


@pytest.mark.parametrize("codec", [name for name in CODECS if not build_codec({"name": name}).pictures])
def test_nvdec_decodes_on_the_gpu_and_refuses_frames_past_the_end(build: Build, codec: str) -> None:
    (ops, outputs), _ = build(codec, "with NVDEC", difference=False, color=True, blur=True)
    assert [(op.kind, op.device) for op in ops.values()] == [
        ("ExternalSource", "cpu"),
        ("ExternalSource", "cpu"),
        ("decoders__Video", "mixed"),
    ]
    decoder = list(ops.values())[-1]
    assert decoder.inputs == (("encoded", "cpu"),) and decoder.arguments == ("frames",)
    assert decoder.options["pad_mode"] == "none" and decoder.options["affine"] is False
    assert outputs == [(decoder.outputs[0][0], "gpu")]


@pytest.mark.parametrize("gpu", list(GPUS))
@pytest.mark.parametrize("codec", list(CODECS))
def test_a_size_may_be_an_input_of_the_resize(build: Build, codec: str, gpu: str) -> None:
    for sizes in (False, True):
        ops, _ = build(codec, gpu, difference=False, color=False, blur=False, sizes=sizes)[-1]
        (resize,) = of(ops, "Resize")
        assert ("size" in resize.arguments) == sizes and len(resize.arguments) == 2 + sizes


def test_blur_is_no_part_of_a_graph(build: Build) -> None:
    plain, blurred = (build("jpeg", "without", difference=False, color=True, blur=blur) for blur in (False, True))
    assert plain == blurred
