"""The options of a `vit` whose weights a file holds: from the shapes of its tensors, and the `config.json` beside it.

The number of heads is in no tensor. It comes from `config.json`, from the user, or from the sizes that the authors of a
family published; a width alone says nothing of it (1408 has 16 heads in VideoMAE v2 and 22 in V-JEPA 2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rhofast.config.section import parse_section
from rhofast.errors import ConfigError
from rhofast.models.backbones.vit import SIZES, ViTConfig
from rhofast.models.weight_file import CONFIG, WeightFile

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_SIZE = ("width", "depth", "heads")
_MAX_WHOLE = 1 << 20
_MAX_SURPLUS = 2  # a network may have this many times the numbers of a file, which may lack biases


def find_prefix(state: Mapping[str, Tensor], pattern: str, leaf: str) -> str | None:
    """Return what stands before the name of an entry, or None if there is no such entry.

    Args:
        state: the state dict.
        pattern: regular expression of what may stand there.
        leaf: the name.
    """
    form = re.compile(rf"((?:{pattern})*){re.escape(leaf)}")
    return next((found[1] for key in state if (found := form.fullmatch(key))), None)


def read_sizes(
    file: WeightFile, state: Mapping[str, Tensor], *, patches: str, blocks: str, hidden: str
) -> dict[str, Any]:
    """Return the options that the shapes of tensors tell.

    Args:
        file: the file, for error messages.
        state: the state dict.
        patches: name of the weight that projects patches, [D, 3, p, p] or [D, 3, t, p, p].
        blocks: what stands before the number of a block in names.
        hidden: name, within a block, of the first weight of the MLP, [hidden, D].

    Returns:
        `width`, `depth`, `mlp_ratio`, `patch`, and for five dimensions `tubelet`.

    Raises:
        ConfigError: the tensors are not those of a plain video transformer.
    """
    shape = list(state[patches].shape)
    if len(shape) not in (4, 5) or shape[1] != 3 or shape[-1] != shape[-2] or 0 in shape:
        raise ConfigError(
            f"{file.path}: {patches} has the shape {shape}", hint="a vit has square patches of three channels"
        )
    width = shape[0]
    numbers = {int(found[1]) for key in state if (found := re.match(rf"{re.escape(blocks)}(\d{{1,4}})\.", key))}
    depth = len(numbers)
    weights = [state.get(f"{blocks}{number}.{hidden}") for number in range(depth)]
    if not depth or any(weight is None or list(weight.shape[1:]) != [width] for weight in weights):
        raise ConfigError(f"{file.path}: its {depth} blocks are not those of a plain transformer")
    inner = weights[0].shape[0]  # type: ignore[union-attr]
    numel = sum(tensor.numel() for tensor in state.values())
    if depth * (4 * width * width + 2 * width * inner) > _MAX_SURPLUS * numel:
        raise ConfigError(f"{file.path}: holds less than a vit of width {width} and depth {depth}")
    said = {"width": width, "depth": depth, "mlp_ratio": inner / width, "patch": shape[-1]}
    return said | ({"tubelet": shape[2]} if len(shape) == 5 else {})


def settle(
    file: WeightFile,
    said: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    pool: str = "mean",
    published: Mapping[tuple[int, int], int] | None = None,
) -> dict[str, Any]:
    """Return the options of the backbone in a file.

    Args:
        file: the file, for error messages.
        said: the options that the file determines; `heads` may be absent or None.
        given: the options that the user gave. They may add what the file does not determine, and repeat what it does.
        pool: the value of `pool` where the user gives none.
        published: number of heads for a width and a depth, as the family's authors published them.

    Raises:
        ConfigError: the user's options contradict the file, are unknown, or nobody says the number of heads.
    """
    said = dict(said)
    width, depth = said["width"], said["depth"]
    named = SIZES.get(str(given.get("size")))
    known = (published or {}).get((width, depth))
    heads = said.get("heads") or given.get("heads") or (named and named[2]) or known
    if heads is None:
        raise ConfigError(
            f"{file.path}: does not say how many attention heads its network of width {width} and depth {depth} has",
            hint=f"put its {CONFIG} beside it, or set backbone.heads" if published is None else "set backbone.heads",
        )
    said["heads"] = heads
    wanted = dict(given)
    if named is not None:
        wanted = {**dict(zip(_SIZE, named, strict=True)), **wanted}
    unlike = [key for key, value in wanted.items() if key in said and not _same(key, value, said)]
    if unlike:
        raise ConfigError(
            f"{file.path}: its network has {_listed(unlike, said)}; got {_listed(unlike, wanted)}",
            hint="leave these options out: the file says them",
        )
    if given.get("pool") == "cls" and not said["class_token"]:
        raise ConfigError(f"{file.path}: its network has no class token", hint="set backbone.pool=mean")
    options = parse_section(ViTConfig, {"pool": pool, **said, **given}, where="backbone").model_dump()
    defaults = ViTConfig().model_dump()
    size = next((name for name, sizes in SIZES.items() if sizes == options_size(options)), None)
    if size is not None:
        options |= {"size": size, **dict.fromkeys(_SIZE)}
    short = {key: value for key, value in options.items() if value != defaults[key]}
    return {**short, **({"size": size} if size else {}), **given}


def options_size(options: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return width, depth and heads."""
    return options["width"], options["depth"], options["heads"]


def whole(file: WeightFile, key: str) -> int | None:
    """Return a whole number of `config.json`, or None if it has none; a list of equal ones counts as one."""
    value = file.config.get(key)
    if isinstance(value, list) and value and all(entry == value[0] for entry in value):
        value = value[0]
    if value is not None and (type(value) is not int or not 1 <= value <= _MAX_WHOLE):
        raise _odd(file, key, "is not one whole number of 1 or more")
    return value


def epsilon(file: WeightFile, default: float) -> float:
    """Return `layer_norm_eps` of `config.json`, or a default if it has none."""
    value = file.config.get("layer_norm_eps", default)
    if type(value) is not float or not 0 < value < 1:
        raise _odd(file, "layer_norm_eps", "is not a number between 0 and 1")
    return value


def check_config(file: WeightFile, model_type: str, sizes: Mapping[str, int | None]) -> None:
    """Raise ConfigError if `config.json` describes another network than the tensors.

    Args:
        file: the file with its configuration, which may be empty.
        model_type: the value of `model_type`.
        sizes: keys with the numbers that the tensors tell.
    """
    if not file.config:
        return
    found = {"model_type": file.config.get("model_type"), **{key: whole(file, key) for key in sizes}}
    for key, value in {"model_type": model_type, **sizes}.items():
        if found[key] not in (None, value):
            raise _odd(file, key, f"is not that of {file.path.name}, which has {value}")
    if file.config.get("hidden_act", "gelu") != "gelu":
        raise _odd(file, "hidden_act", "is not the activation of a vit, which is gelu")


def _odd(file: WeightFile, key: str, why: str) -> ConfigError:
    value = file.config.get(key)
    return ConfigError(f"{file.path.parent / CONFIG}: {key}={value!r} {why}")


def _same(key: str, value: object, said: Mapping[str, Any]) -> bool:
    if key == "mlp_ratio" and isinstance(value, float | int):
        return bool(abs(value - said["mlp_ratio"]) * said["width"] < 0.5)  # the same hidden width
    return bool(value == said[key]) or (value is None and key in _SIZE)


def _listed(keys: list[str], values: Mapping[str, Any]) -> str:
    return ", ".join(f"backbone.{key}={_text(values[key])}" for key in keys)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
