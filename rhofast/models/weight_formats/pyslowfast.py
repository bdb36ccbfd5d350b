"""PySlowFast's checkpoints of Slow networks, in and out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rhofast.config.schema import Config
from rhofast.errors import ConfigError
from rhofast.models.backbones.slow import DEPTHS, VARIANTS, Slow, slow_keys
from rhofast.models.weight_conversion import KeyTable, WeightFormat, is_state
from rhofast.models.weight_file import WeightFile

# What a PySlowFast checkpoint holds besides the backbone: projection, predictor or classifier; the momentum network;
# MoCo's queue and counters (BYOL has them too); prototypes; the memory bank of the kNN evaluation.
_PYSLOWFAST_OTHER = re.compile(r"(backbone\.)?head\.|backbone_hist\.|queue_x$|ptr$|iter$|swav_prototypes\.|knn_mem\.")
_MAX_NUMBER = 1e9  # of a configuration; what is beyond is refused anyway


def pyslowfast_keys(name: str, backbone: nn.Module, state: Mapping[str, Tensor]) -> KeyTable:
    """Return the table of names of a PySlowFast `model_state`.

    The backbone's entries start with `backbone.` in a pretraining checkpoint and without a prefix in a classifier's;
    both may start with `module.`.

    Args:
        name: name of the backbone.
        backbone: a Slow network.
        state: the `model_state`.

    Returns:
        The table.
    """
    assert isinstance(backbone, Slow)
    wrapped = "module." if all(key.startswith("module.") for key in state) else ""
    prefix = wrapped + ("backbone." if any(key.startswith(f"{wrapped}backbone.s1.") for key in state) else "")
    return KeyTable(
        names={prefix + official: ours for official, ours in slow_keys(backbone).items()},
        is_other=lambda key: _PYSLOWFAST_OTHER.match(key.removeprefix(wrapped)) is not None,
        hint=_describe_slow(state),
    )


def pyslowfast_state(backbone: nn.Module) -> dict[str, Tensor]:
    """Return a Slow network's state dict under PySlowFast's names, as PySlowFast's fine-tuning reads it.

    Raises:
        ConfigError: for a network that PySlowFast cannot build.
    """
    assert isinstance(backbone, Slow)
    options = backbone.options
    reasons = {
        "its depth": options.depth not in (18, 50, 101),
        "its temporal kernels": options.temporal_kernels != (1, 1, 3, 3),
        "the widths of its basic blocks": options.block == "basic" and not options.wide_basic,
    }
    if any(reasons.values()):
        why = " and ".join(reason for reason, holds in reasons.items() if holds)
        raise ConfigError(f"PySlowFast cannot build this network: {why}", hint="export it with --format safetensors")
    state = backbone.state_dict()
    return {official: state[ours].detach().cpu().clone() for official, ours in slow_keys(backbone).items()}


def _write_pyslowfast(backbone: nn.Module, config: Config, epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "model_state": pyslowfast_state(backbone), "cfg": _pyslowfast_config(backbone, config)}


def _pyslowfast_config(backbone: nn.Module, config: Config) -> str:
    """Return the lines of a PySlowFast configuration that describe the network and its input, in YAML."""
    assert isinstance(backbone, Slow)
    options, clips, augment = backbone.options, config.clips, config.augment
    kernels = [[min(pair)] for pair in zip(options.temporal_blocks, DEPTHS[options.depth], strict=True)]
    lines = [
        "MODEL:\n  ARCH: slow\n  MODEL_NAME: ResNet",
        f"RESNET:\n  DEPTH: {options.depth}\n  WIDTH_PER_GROUP: {options.width}",
        f"  TRANS_FUNC: {options.block}_transform\n  NUM_BLOCK_TEMP_KERNEL: {kernels}",
        f"DATA:\n  NUM_FRAMES: {clips.num_frames}\n  SAMPLING_RATE: {clips.frame_stride}\n  TARGET_FPS: {clips.fps:g}",
        f"  TRAIN_CROP_SIZE: {augment.size}\n  INPUT_CHANNEL_NUM: [3]",
        f"  MEAN: {list(augment.mean)}\n  STD: {list(augment.std)}",
    ]
    return "\n".join(lines) + "\n"


def _pyslowfast_input(name: str, file: WeightFile) -> dict[str, Any]:
    """Read the network's input from a checkpoint's configuration; the normalization defaults to the released one."""
    text = file.content.get("cfg")
    data = re.search(r"^DATA:\n((?: .*\n?)*)", text, re.MULTILINE) if isinstance(text, str) else None

    def numbers(key: str) -> list[float] | None:
        found = data and re.search(rf"^  {key}:(.*(?:\n  - .*)*)", data[1], re.MULTILINE)
        return [float(number) for number in re.findall(r"\d+\.?\d*(?:e-?\d+)?", found[1])] or None if found else None

    def first(key: str) -> float | None:
        found = numbers(key)
        return None if found is None else found[0]

    def whole(key: str) -> int | None:
        found = first(key)
        return None if found is None else int(min(found, _MAX_NUMBER))

    return {
        "num_frames": whole("NUM_FRAMES"),
        "frame_stride": whole("SAMPLING_RATE"),
        "size": whole("TRAIN_CROP_SIZE"),
        "fps": first("TARGET_FPS"),
        "mean": numbers("MEAN") or [0.45, 0.45, 0.45],
        "std": numbers("STD") or [0.225, 0.225, 0.225],
    }


def _describe_slow(state: Mapping[str, Tensor]) -> str:
    """Describe the Slow network in a PySlowFast state dict, as a hint."""
    names = "\n".join(state)
    counts = tuple(len(set(re.findall(rf"\bs{stage}\.pathway0_res(\d+)\.", names))) for stage in range(2, 6))
    if not any(counts):
        return "it must be a checkpoint of PySlowFast's slow pathway"
    depths = [depth for depth, known in DEPTHS.items() if known == counts]
    kind = "bottleneck" if any(".branch2.c." in key for key in state) else "basic"
    stem = [value.shape[0] for key, value in state.items() if key.endswith("pathway0_stem.conv.weight") and value.ndim]
    width = f", width {stem[0]}" if stem else ""
    return f"it has {list(counts)} {kind} blocks{f' (depth {depths[-1]})' if depths else ''}{width}"


PYSLOWFAST = WeightFormat(
    title="PySlowFast checkpoint",
    backbones=tuple(VARIANTS),
    part=lambda content: "model_state" if is_state(content.get("model_state")) else None,
    keys_in=pyslowfast_keys,
    expected_input=_pyslowfast_input,
    write=_write_pyslowfast,
)
