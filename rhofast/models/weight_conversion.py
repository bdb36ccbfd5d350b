"""Others' weights: the key tables of official PySlowFast checkpoints and of torchvision's, both ways, and their files.

Nothing is skipped silently: what was taken over, left behind and missing is said by name, and a file whose trunk is
another one is refused. What it is not: it writes no file (export.py), downloads nothing, and runs no code that is
pickled in a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from rhofast.config.schema import Config
from rhofast.errors import ConfigError
from rhofast.models.backbones.slow import DEPTHS, Slow, slow_keys
from rhofast.models.backbones.torchvision_video import CLASSIFIERS

_SHOWN = 4  # names of a list that an error message gives

# What an official pretraining or classification checkpoint holds besides the trunk: projection, predictor or
# classifier; the key network; MoCo's queue and counters (BYOL has them too); prototypes; the kNN monitor's bank.
_NO_TRUNK = re.compile(r"(backbone\.)?head\.|backbone_hist\.|queue_x$|ptr$|iter$|swav_prototypes\.|knn_mem\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What became of a state dict: entries taken over, entries left behind (heads, key networks, queues), and entries
    of the backbone that it did not have, which keep their initial values (counters of batches, nothing that matters).
    """

    matched: list[str]
    dropped: list[str]
    missing: list[str]


def import_pyslowfast(backbone: Slow, state: Mapping[str, Tensor]) -> Imported:
    """Fill a Slow backbone from an official `model_state`, in place: entries `backbone.*` of a pretraining checkpoint,
    or entries without that prefix of a classification one; either with `module.` before all. Raises ConfigError where
    the trunk is another one: in shape, with entries that are not known, or without some."""
    wrapped = "module." if all(key.startswith("module.") for key in state) else ""
    prefix = wrapped + ("backbone." if any(key.startswith(f"{wrapped}backbone.s1.") for key in state) else "")
    table = {prefix + official: here for official, here in slow_keys(backbone).items()}

    def belongs_elsewhere(key: str) -> bool:
        return _NO_TRUNK.match(key.removeprefix(wrapped)) is not None

    return _fill(backbone, state, table, belongs_elsewhere, hint=_describe_trunk(state))


def import_torchvision(backbone: nn.Module, name: str, state: Mapping[str, Tensor]) -> Imported:
    """Fill the torchvision backbone `name` from a state dict as torchvision publishes it, in place; its classifier is
    left behind. Raises ConfigError where it belongs to another network."""
    classifier = f"{CLASSIFIERS[name]}."
    table = {key: key for key in backbone.state_dict()}
    return _fill(
        backbone, state, table, lambda key: key.startswith(classifier), hint=f"{name} is said to be its network"
    )


def export_pyslowfast(backbone: Slow) -> dict[str, Tensor]:
    """A Slow backbone's state under the official names of a classification network, without its head: what official
    fine-tuning takes from a `{"model_state": ...}` file. Raises ConfigError for a network that the official code cannot
    build."""
    options = backbone.options
    reasons = {
        "its depth": options.depth not in (18, 50, 101),
        "its temporal kernels": options.temporal_kernels != (1, 1, 3, 3),
        "the widths of its basic blocks": options.block == "basic" and not options.wide_basic,
    }
    if any(reasons.values()):
        why = " and ".join(reason for reason, holds in reasons.items() if holds)
        raise ConfigError(f"PySlowFast cannot build this network: {why}", hint="export it as safetensors")
    state = backbone.state_dict()
    return {official: state[here].detach().cpu().clone() for official, here in slow_keys(backbone).items()}


def _fill(
    backbone: nn.Module,
    state: Mapping[str, Tensor],
    table: Mapping[str, str],
    belongs_elsewhere: Callable[[str], bool],
    *,
    hint: str,
) -> Imported:
    """Load what `table` (name there -> name here) finds in `state`. Raises ConfigError unless all of the backbone but
    counters of batches is there, in shape, and the rest belongs elsewhere."""
    own = backbone.state_dict()
    matched = [key for key in state if key in table]
    dropped = [key for key in state if key not in table and belongs_elsewhere(key)]
    missing = [key for key in table if key not in state]
    unlike = [key for key in matched if state[key].shape != own[table[key]].shape]
    wrong = {
        "of another shape": [f"{key} {list(state[key].shape)}, here {list(own[table[key]].shape)}" for key in unlike],
        "not known": [key for key in state if key not in table and not belongs_elsewhere(key)],
        "missing": [key for key in missing if not key.endswith("num_batches_tracked")],
    }
    if not matched:
        raise ConfigError("no entry of the file belongs to this backbone", hint=hint)
    if any(wrong.values()):
        lists = [f"{len(names)} {what}: {_some(names)}" for what, names in wrong.items() if names]
        raise ConfigError(f"the file's weights are those of another network; entries {'; '.join(lists)}", hint=hint)
    backbone.load_state_dict({table[key]: state[key] for key in matched}, strict=False)
    return Imported(matched=matched, dropped=dropped, missing=missing)


def _describe_trunk(state: Mapping[str, Tensor]) -> str:
    """What a Slow network's official state looks like, as a hint."""
    names = "\n".join(state)
    counts = tuple(len(set(re.findall(rf"\bs{stage}\.pathway0_res(\d+)\.", names))) for stage in range(2, 6))
    if not any(counts):
        return "give a checkpoint of PySlowFast's slow pathway; torchvision's weights go with torchvision's names"
    depths = [depth for depth, known in DEPTHS.items() if known == counts]
    kind = "bottleneck" if any(".branch2.c." in key for key in state) else "basic"
    stem = [value.shape[0] for key, value in state.items() if key.endswith("pathway0_stem.conv.weight")]
    width = f", width {stem[0]}" if stem else ""
    return f"it has {list(counts)} {kind} blocks{f' (depth {depths[-1]})' if depths else ''}{width}"


def read_weights(path: Path) -> dict[str, Any]:
    """What torch.load finds in a file, without running anything. Raises ConfigError where it is not a dict."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # What torch's restricted unpickler says of a file that is none depends on its first bytes.
    except (OSError, RuntimeError, UnpicklingError, EOFError, LookupError, ValueError, TypeError) as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is not None:
            raise ConfigError(
                f"{path}: refused: to read it, code pickled in it would have to run ({found[1]})",
                hint="where you trust it, save its tensors alone: torch.save({'model_state': ...}, path)",
            ) from None
        if isinstance(error, OSError):
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
        # Torch's own words are a guess at the cause, and advice to read the file without restriction.
        raise ConfigError(
            f"{path}: cannot be read as a checkpoint of torch", hint="it is something else, or was cut short"
        ) from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: holds a {type(loaded).__name__}, not a checkpoint")
    return loaded


def official_state(path: Path, loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's entries of an official checkpoint. Raises ConfigError where it is none."""
    state = loaded.get("model_state")
    if not isinstance(state, dict) or not is_state(state):
        holds = _some([str(key) for key in loaded])
        raise ConfigError(f"{path}: has no model_state, so it is no PySlowFast checkpoint", hint=f"it holds {holds}")
    return state


def is_state(loaded: Mapping[Any, Any]) -> bool:
    """Whether a dict is one of names and tensors."""
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items())


def official_cfg(backbone: Slow, config: Config) -> str:
    """Those lines of a PySlowFast configuration that the weights go with, in YAML."""
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


def official_input(cfg: object) -> dict[str, Any]:
    """What goes into an official network, from its checkpoint's configuration; the release's normalization where that
    does not say."""
    section = re.search(r"^DATA:\n((?: .*\n?)*)", cfg, re.MULTILINE) if isinstance(cfg, str) else None

    def numbers(key: str) -> list[float] | None:
        found = section and re.search(rf"^  {key}:(.*(?:\n  - .*)*)", section[1], re.MULTILINE)
        return [float(number) for number in re.findall(r"\d+\.?\d*(?:e-?\d+)?", found[1])] or None if found else None

    def one(key: str) -> float | None:
        found = numbers(key)
        return None if found is None else found[0]

    whole = {"num_frames": one("NUM_FRAMES"), "frame_stride": one("SAMPLING_RATE"), "size": one("TRAIN_CROP_SIZE")}
    return {
        **{key: None if value is None else int(value) for key, value in whole.items()},
        "fps": one("TARGET_FPS"),
        "mean": numbers("MEAN") or [0.45, 0.45, 0.45],
        "std": numbers("STD") or [0.225, 0.225, 0.225],
    }


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
