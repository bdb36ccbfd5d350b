"""The graphs of a GPU, as far as DALI defines them without one: which operators there are, and where they run."""

import itertools
from typing import Any, Literal, get_args

import pytest

from rhofast.config.schema import AugmentConfig
from rhofast.data.decode.pipeline import define_graph
from rhofast.data.decode.video_decoder import define_video_graph

Source = Literal["jpeg", "frames", "video"]


def operators(pipeline: Any) -> dict[str, Any]:
    """Describe each operator of a graph, by the name of its first output."""
    pipeline._build_graph()
    return {op.outputs[0].name: op for op in pipeline._ops}


def kind(op: Any) -> str:
    return str(op.spec).splitlines()[0].removeprefix("OpSpec for ").rstrip(":")


def argument(op: Any, name: str) -> str | None:
    found = [line.split(": ", 1)[1] for line in str(op.spec).splitlines() if line.startswith(f"    {name}: ")]
    return found[0] if found else None


@pytest.mark.parametrize("source", get_args(Source))
@pytest.mark.parametrize(("color", "difference"), list(itertools.product([False, True], repeat=2)))
def test_a_gpu_decodes_whole_pictures_and_crops_them_there(source: Source, color: bool, difference: bool) -> None:
    pipeline = define_graph(
        AugmentConfig(size=16),
        color=color,
        difference=difference,
        source=source,
        batch_size=8,
        num_threads=2,
        device_id=0,
        hw_decoder_load=0.25,
    )
    ops = operators(pipeline)
    kinds = [kind(op) for op in ops.values()]
    branches = 1 + difference
    decoders = [op for op in ops.values() if "decoders" in kind(op)]
    assert len(decoders) == (branches if source == "jpeg" else 0)
    for decoder in decoders:  # a decoder of regions fails or crashes on some GPUs (NVIDIA/nvImageCodec#55)
        assert kind(decoder) == "decoders__Image" and argument(decoder, "device") == "mixed"
        assert argument(decoder, "jpeg_fancy_upsampling") == "True"
        assert argument(decoder, "adjust_orientation") == "False"
        assert float(argument(decoder, "hw_decoder_load") or "nan") == 0.25
    slices = [op for op in ops.values() if kind(op) == "Slice"]
    assert len(slices) == branches
    for op in slices:
        # Frames of the host are cropped there, and only the crops are copied to the device.
        assert argument(op, "device") == ("cpu" if source == "frames" else "gpu")
        maker = ops[op.inputs[0].name]
        while kind(maker) == "_conditional__Split":
            maker = ops[maker.inputs[0].name]
        assert kind(maker) == ("decoders__Image" if source == "jpeg" else "ExternalSource")
    assert kinds.count("Resize") == branches
    last = next(op for op in reversed(ops.values()) if kind(op) in ("CoordTransform", "CropMirrorNormalize"))
    assert kind(last) == ("CoordTransform" if color else "CropMirrorNormalize")
    for op in ops.values():
        if kind(op) in ("Resize", "CoordTransform", "CropMirrorNormalize", "Cast", "ArithmeticGenericOp"):
            assert argument(op, "device") == "gpu", op.spec
    for name in ("pictures", *(["neighbors"] if difference else [])):
        assert argument(ops[name], "device") == ("gpu" if source == "video" else "cpu")
        assert argument(ops[name], "no_copy") == (None if source == "video" else "True")


def test_nvdec_decodes_on_the_device_and_refuses_frames_past_the_end() -> None:
    ops = operators(define_video_graph(batch_size=4, num_threads=2, device_id=0))
    (decoder,) = [op for op in ops.values() if "decoders" in kind(op)]
    assert kind(decoder) == "decoders__Video" and argument(decoder, "device") == "mixed"
    assert argument(decoder, "pad_mode") == "none" and argument(decoder, "affine") == "False"
    assert all(argument(ops[name], "device") == "cpu" for name in ("encoded", "frames"))
