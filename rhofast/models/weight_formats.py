"""The weight files of other programs: PySlowFast checkpoints and torchvision's state dicts.

To add a format, add a `WeightFormat` to WEIGHT_FORMATS. `rhofast import`, `rhofast export` and the evaluations then
know it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rhofast.config.schema import Config
from rhofast.errors import ConfigError
from rhofast.models.backbones.s3d import S3D, torchvision_s3d_keys
from rhofast.models.backbones.slow import DEPTHS, VARIANTS, Slow, slow_keys
from rhofast.models.backbones.torchvision_video import CLASSIFIERS, NAMES, published_input
from rhofast.models.weight_conversion import Imported, KeyTable, WeightFormat, fill_backbone, is_state, list_names

# What a PySlowFast checkpoint holds besides the backbone: projection, predictor or classifier; the momentum network;
# MoCo's queue and counters (BYOL has them too); prototypes; the memory bank of the kNN evaluation.
_PYSLOWFAST_OTHER = re.compile(r"(backbone\.)?head\.|backbone_hist\.|queue_x$|ptr$|iter$|swav_prototypes\.|knn_mem\.")
_TORCHVISION = (*NAMES, "s3d")  # the last is a network of our own, whose weights torchvision has
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


def _pyslowfast_input(name: str, loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Read the network's input from a checkpoint's configuration; the normalization defaults to the released one."""
    text = loaded.get("cfg")
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


def _torchvision_keys(name: str, backbone: nn.Module, state: Mapping[str, Tensor]) -> KeyTable:
    """Names are the same, except for those of S3D; the classifier belongs to no backbone."""
    if isinstance(backbone, S3D):
        names, classifier = torchvision_s3d_keys(backbone), "classifier"
    else:
        names, classifier = {key: key for key in backbone.state_dict()}, CLASSIFIERS[name]
    return KeyTable(
        names=names,
        is_other=lambda key: key.startswith(f"{classifier}."),
        hint=f"the backbone is said to be {name}",
    )


def _torchvision_name(file_name: str) -> str | None:
    """Return the network that torchvision's file names start with, such as r3d_18-b3b3357e.pth."""
    fitting = [name for name in _TORCHVISION if file_name.startswith(name)]
    return max(fitting, key=len) if fitting else None


WEIGHT_FORMATS: dict[str, WeightFormat] = {
    "pyslowfast": WeightFormat(
        title="PySlowFast checkpoint",
        backbones=tuple(VARIANTS),
        recognizes=lambda loaded: is_state(loaded.get("model_state")),
        unwrap=lambda loaded: dict(loaded["model_state"]),
        keys_in=pyslowfast_keys,
        expected_input=_pyslowfast_input,
        write=_write_pyslowfast,
    ),
    "torchvision": WeightFormat(
        title="torchvision state dict",
        backbones=_TORCHVISION,
        recognizes=is_state,
        unwrap=dict,
        keys_in=_torchvision_keys,
        expected_input=lambda name, _: published_input(name),
        backbone_of=_torchvision_name,
    ),
}


def format_for(path: Path, loaded: Mapping[str, Any], backbone: str) -> WeightFormat:
    """Return the format in which a file holds the weights of a given backbone.

    Args:
        path: the file, for error messages.
        loaded: its content.
        backbone: name of the backbone.

    Returns:
        The format.

    Raises:
        ConfigError: if no format of this backbone's weights recognizes the content.
    """
    fitting = [known for known in WEIGHT_FORMATS.values() if backbone in known.backbones]
    for known in fitting:
        if known.recognizes(loaded):
            return known
    wanted = " or ".join(known.title for known in fitting) or "file of a known format"
    found = [known.title for known in WEIGHT_FORMATS.values() if known.recognizes(loaded)]
    holds = f"it is a {found[0]}" if found else f"it holds {list_names([str(key) for key in loaded])}"
    raise ConfigError(f"{path}: not a {wanted}, which backbone {backbone!r} needs", hint=holds)


def backbone_in(path: Path, loaded: Mapping[str, Any]) -> str | None:
    """Return the name of the backbone in a file, where the name of the file tells it.

    Args:
        path: the file.
        loaded: its content.

    Returns:
        The backbone's name, or None where the config must name it.

    Raises:
        ConfigError: if no format recognizes the content and the name of the file.
    """
    recognized = [known for known in WEIGHT_FORMATS.values() if known.recognizes(loaded)]
    for known in recognized:
        if known.backbone_of is None:
            return None
        name = known.backbone_of(path.name)
        if name is not None:
            return name
    if recognized:
        names = ", ".join(name for known in recognized for name in known.backbones)
        raise ConfigError(
            f"{path}: a {recognized[0].title} whose file name does not say which backbone it holds",
            hint=f"such names begin with {names}; or convert it with rhofast import",
        )
    titles = " or a ".join(known.title for known in WEIGHT_FORMATS.values())
    raise ConfigError(f"{path}: not a {titles}", hint=f"it holds {list_names([str(key) for key in loaded])}")


def load_into(backbone: nn.Module, *, name: str, known: WeightFormat, loaded: Mapping[str, Any]) -> Imported:
    """Load the weights in the content of a file into a backbone, in place.

    Args:
        backbone: the backbone. It stays as it was if the weights do not fit.
        name: its name.
        known: the format of the file.
        loaded: the content of the file.

    Returns:
        What happened to each entry of the file.

    Raises:
        ConfigError: if the weights are those of another network.
    """
    state = known.unwrap(loaded)
    return fill_backbone(backbone, state, known.keys_in(name, backbone, state))
