"""Weights across the border: official PySlowFast checkpoints, torchvision's state dicts, and single-file backbones.

    rhofast run  ->  NAME.safetensors (with a card), NAME.pyth (as PySlowFast writes it)      export_checkpoint
    NAME.pyth of PySlowFast, NAME.pth of torchvision  ->  NAME.safetensors                    import_weights
    NAME.safetensors  ->  an nn.Module, in one line                                           load_backbone

Key tables are explicit and go both ways. Nothing is skipped silently: what was taken over, left behind and missing is
said by name, and a file whose trunk is another one is refused. What it is not: it downloads nothing and runs no code
that is pickled in a file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rhofast.backbones import build_backbone
from rhofast.backbones.slow import DEPTHS, Slow, slow_keys
from rhofast.backbones.torchvision_video import CLASSIFIERS, published_input
from rhofast.config import Config
from rhofast.data.index import open_shards
from rhofast.errors import ConfigError, ResumeError, ShardError
from rhofast.files import publish

VERSION = 1
Format = Literal["safetensors", "pyslowfast"]

_SHOWN = 4  # names of a list that an error message gives

# What an official pretraining or classification checkpoint holds besides the trunk: projection, predictor or
# classifier; the key network; MoCo's queue and counters (BYOL has them too); prototypes; the kNN monitor's bank.
_NO_TRUNK = re.compile(r"(backbone\.)?head\.|backbone_hist\.|queue_x$|ptr$|iter$|swav_prototypes\.|knn_mem\.")


class SavedRun(Protocol):
    """What is read of a checkpoint: `rhofast.checkpoint.Checkpoint` has it."""

    @property
    def step(self) -> int: ...
    @property
    def config(self) -> Config: ...
    @property
    def loader(self) -> dict[str, Any]: ...
    @property
    def method(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What became of a state dict: entries taken over, entries left behind (heads, key networks, queues), and entries
    of the backbone that it did not have, which keep their initial values (counters of batches, nothing that matters).
    """

    matched: list[str]
    dropped: list[str]
    missing: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """A file that was written. origin: what the weights came from, in words; target; backbone: its name; entries: by
    name; card: what the file says about itself."""

    origin: str
    target: Path
    backbone: str
    entries: Imported
    card: dict[str, Any]


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


def export_checkpoint(saved: SavedRun, target: Path, *, format: Format, run: Path | None = None) -> Transfer:
    """Write the trained backbone of a checkpoint to `target`, in one of the formats; a file that is there is replaced.

    run: the run folder, for the metrics that were logged at this very step. `pyslowfast` writes {"model_state", "cfg",
    "epoch"}, for official fine-tuning and tests (which start a new count of epochs). Raises ConfigError, ResumeError.
    """
    _check_target(target)
    config, prefix = saved.config, "backbone."
    name, options = config.backbone.name, config.backbone.options
    backbone = build_backbone(name, options)
    weights = {key.removeprefix(prefix): value for key, value in saved.method.items() if key.startswith(prefix)}
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise ResumeError(f"the checkpoint's weights do not fit backbone {name!r}: {_one_line(error)}") from None
    card: dict[str, Any] = {
        "origin": f"rhofast run {config.name}, step {saved.step}",
        "input": _input_card(
            num_frames=config.clips.num_frames,
            frame_stride=config.clips.frame_stride,
            fps=config.clips.fps,
            size=config.augment.size,
            mean=list(config.augment.mean),
            std=list(config.augment.std),
        ),
        "num_features": backbone.num_features,
        "training": {
            "method": {"name": config.method.name, **config.method.options},
            "num_clips": config.clips.num_clips,
            "batch_size": config.train.batch_size,
            "seed": config.seed,
            "data": _data_card(config.data.train, saved.loader.get("digest")),
        },
        "metrics": {} if run is None else _metrics_at(run / "metrics.jsonl", saved.step),
    }
    if format == "safetensors":
        save_backbone(backbone, target, name=name, options=options, card=card)
    elif isinstance(backbone, Slow):
        whole = {
            "epoch": saved.loader.get("epoch", 0),
            "model_state": export_pyslowfast(backbone),
            "cfg": _official_cfg(backbone, config),
        }
        _write(target, lambda aside: torch.save(whole, aside))
    else:
        raise ConfigError(f"PySlowFast has no network {name!r}", hint="export it as safetensors")
    dropped = [key for key in saved.method if not key.startswith(prefix)]
    entries = Imported(matched=[f"{prefix}{key}" for key in weights], dropped=dropped, missing=[])
    return Transfer(origin=card["origin"], target=target, backbone=name, entries=entries, card=card)


def import_weights(source: Path, target: Path, *, backbone: str, options: Mapping[str, Any] | None = None) -> Transfer:
    """Write the backbone in a foreign file as a safetensors file that `load_backbone` opens.

    source: an official PySlowFast checkpoint (.pyth), for a Slow backbone; a state dict as torchvision publishes it
    (.pth), for one of torchvision's. backbone, options: what it is, as in a page's [backbone]. Raises ConfigError for a
    file that is neither, that cannot be read without running what is pickled in it, or of another network.
    """
    _check_target(target)
    options = dict(options or {})
    network = build_backbone(backbone, options)
    loaded = _read(source)
    if isinstance(network, Slow):
        entries = import_pyslowfast(network, _model_state(source, loaded))
        origin, expects = "PySlowFast checkpoint", _official_input(loaded.get("cfg"))
    else:
        if "model_state" in loaded:
            raise ConfigError(f"{source}: a PySlowFast checkpoint, and {backbone} is torchvision's", hint="slow_...?")
        if not _is_state(loaded):
            raise ConfigError(f"{source}: not a state dict", hint="give a file as torchvision publishes it")
        entries = import_torchvision(network, backbone, loaded)
        origin, expects = "torchvision state dict", published_input(backbone)
    card: dict[str, Any] = {
        "origin": f"{origin} {source.name}, SHA-256 {_sha256(source)}",
        "input": _input_card(**expects),
        "num_features": network.num_features,
    }
    save_backbone(network, target, name=backbone, options=options, card=card)
    return Transfer(origin=card["origin"], target=target, backbone=backbone, entries=entries, card=card)


def save_backbone(
    backbone: nn.Module, path: Path, *, name: str, options: Mapping[str, Any], card: Mapping[str, Any]
) -> None:
    """Write a backbone as one safetensors file. Its metadata holds what builds it again (name, options) and a card:
    anything worth knowing, as JSON (what goes in, training data, metrics). Raises OSError."""
    notes = {"version": VERSION, "backbone": {"name": name, **options}, "card": card}
    weights = {key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()}
    _write(path, lambda aside: save_file(weights, aside, metadata={"rhofast": json.dumps(notes)}))


def load_backbone(path: str | Path) -> nn.Module:
    """The backbone of an exported or imported file, in evaluation mode: [N, 3, T, H, W] -> [N, num_features].

    Its `card` is a dict; `card["input"]` says what goes in: num_frames, frame_stride, fps, size, mean, std, each None
    where it is not known, and as a sentence (`text`). Raises ConfigError where the file is not such an export.
    """
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {}).get("rhofast", "null"))
        weights = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if notes is None:
        raise ConfigError(f"{path}: not a backbone exported by rhofast", hint="see rhofast export, rhofast import")
    if notes.get("version") != VERSION:
        raise ConfigError(f"{path}: export version {notes.get('version')}, this rhofast reads {VERSION}")
    options = dict(notes["backbone"])
    name = options.pop("name")
    backbone = build_backbone(name, options)
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"{path}: its weights do not fit backbone {name!r}: {_one_line(error)}") from None
    backbone.card = notes["card"]
    return backbone.eval()


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


def _read(path: Path) -> dict[str, Any]:
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
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: cannot be read as a checkpoint of torch: {reason}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: holds a {type(loaded).__name__}, not a checkpoint")
    return loaded


def _model_state(path: Path, loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    state = loaded.get("model_state")
    if not isinstance(state, dict) or not _is_state(state):
        holds = _some([str(key) for key in loaded])
        raise ConfigError(f"{path}: has no model_state, so it is no PySlowFast checkpoint", hint=f"it holds {holds}")
    return state


def _is_state(loaded: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items())


def _official_cfg(backbone: Slow, config: Config) -> str:
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


def _official_input(cfg: object) -> dict[str, Any]:
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


def _input_card(
    *,
    mean: list[float],
    std: list[float],
    size: int | None,
    num_frames: int | None,
    frame_stride: int | None = None,
    fps: float | None = None,
) -> dict[str, Any]:
    frames = "T" if num_frames is None else num_frames
    side = "H" if size is None else size
    apart = "" if frame_stride is None or fps is None else f", {frame_stride} frames apart at {fps:g} a second"
    text = (
        f"[N, 3, {frames}, {side}, {'W' if size is None else size}] float32, RGB in [0, 1] minus {mean}, "
        f"divided by {std}{apart}"
    )
    known = {"num_frames": num_frames, "frame_stride": frame_stride, "fps": fps, "size": size, "mean": mean, "std": std}
    return {"text": text, **known}


def _data_card(folder: Path | None, digest: str | None) -> dict[str, Any]:
    """Name and digest of the training data; the name where the set is still where the run found it."""
    try:
        info = None if folder is None else open_shards(folder, check_files=False).info
    except ShardError:
        info = None
    return {"name": info.name if info is not None and info.digest == digest else None, "digest": digest}


def _metrics_at(path: Path, step: int) -> dict[str, float]:
    """The kNN figures that a run logged at a step, if it did."""
    if not path.is_file():
        return {}
    whole = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    lines = [json.loads(line) for line in whole]  # the last one of a killed run may be cut short
    found = [line for line in lines if line.get("kind") == "knn" and line.get("step") == step]
    return {f"knn_{key}": found[-1][key] for key in ("top1", "top5", "samples")} if found else {}


def _check_target(path: Path) -> None:
    if path.is_dir():
        raise ConfigError(f"{path}: a folder, not a file to write")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")


def _write(path: Path, save: Callable[[Path], object]) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    try:
        save(aside)
        publish(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
