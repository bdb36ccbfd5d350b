"""Loaders in one call: `clips` for training and `eval_clips` for evaluation, with a default for everything else.

Both return the loaders that rhofast itself trains and evaluates with; nothing stands between them and the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.config.section import parse_section
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.eval_loader import EvalLoader
from rhofast.data.loader.open_sets import open_mixture, open_set
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.mixture import Mixture
from rhofast.distributed.process_group import find_device, find_place
from rhofast.errors import ConfigError

Augmentation = Literal["ssl", "supervised", "none"]
Source = str | Path | ShardSet

_MAX_SEED = 1 << 63
# Options that are arguments of the functions below.
_ARGUMENTS = {
    **{f"clips.{name}": name for name in ("num_clips", "num_frames", "frame_stride", "fps")},
    "augment.size": "size",
    "data.train": "shards",
    "data.test": "shards",
}


def clips(
    shards: Source | Mixture | Sequence[str | Path] | Mapping[str, float],
    *,
    keep: str | Path | Mapping[str, str | Path] | None = None,
    num_clips: int = 2,
    num_frames: int = 8,
    frame_stride: int = 8,
    fps: float = 30.0,
    size: int = 224,
    batch_size: int = 64,
    augment: Augmentation = "ssl",
    fields: Sequence[str] = (),
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    options: Mapping[str, Any] | None = None,
) -> TrainLoader:
    """Open a training loader: batches of augmented clips, an epoch per `for` loop, or without end by `next(loader)`.

    With the same options, seed and ranks its batches are those of `rhofast train`, bit for bit.

    Args:
        shards: Folder or address of a shard set, several of them, several with weights (`{"shards/a": 3.0, ...}`), or
            what `open_shards` returned.
        keep: File that lists the samples to use, by keys and perhaps weights, as for `open_shards`; for several sets a
            file per set (`{"shards/a": "a.parquet"}`). None for all samples.
        num_clips: Clips per video (rho).
        num_frames: Frames per clip (T).
        frame_stride: Distance between two frames of a clip, in frames at `fps` (tau).
        fps: Frame rate at which clips are sampled, in frames per second.
        size: Side of the square clips in pixels.
        batch_size: Videos per global batch, over all ranks.
        augment: "ssl" is the augmentation of `rhofast train`, "supervised" crops at several scales and flips, "none"
            takes the central square. With "ssl", `num_clips=1` gives two views of the same frames, as in training.
        fields: Fields of the samples that batches have besides; nothing is read for others. "labels": which classes
            hold at some time of each clip. "key": the keys. "extra": the fields of the user's own, or "extra.NAME" for
            some of them. "label" only refuses a set without labels, where `views.label` is otherwise -100.
        seed: Seed of order, clips and augmentation.
        rank: This rank; None to find it out, from torch.distributed or from the launcher.
        world_size: Number of ranks; None to find it out.
        device: Device of the batches; None for this process's GPU, or the CPU where there is none.
        dtype: Type of the pixels: float32, or float16 on a GPU.
        options: Any other option of the sections `clips`, `augment` and `data`, as in a config or after `--set`:
            `{"data.threads": 8, "clips.short": "loop"}`.

    Returns:
        The loader. It is closed by `close()` or by leaving a `with` block.

    Raises:
        ConfigError: An argument is wrong, or options do not fit together, the data or the ranks.
        ShardError: A shard set cannot be opened.
    """
    given = {"num_clips": num_clips, "num_frames": num_frames, "frame_stride": frame_stride, "fps": fps}
    sections = _parse(given, size, augment, options)
    place = _find_place(rank, world_size)
    where = _find_device(device, dtype)
    _check_number("batch_size", batch_size, 1, 1 << 24)
    _check_number("seed", seed, 0, _MAX_SEED - 1)
    mixture = open_mixture(shards, keep, sections.data, place[1])
    return TrainLoader(
        mixture,
        clips=sections.clips,
        augment=sections.augment,
        data=sections.data,
        batch_size=batch_size,
        seed=seed,
        rank=place[0],
        world_size=place[1],
        device=where,
        dtype=dtype,
        fields=fields,
        duplicate_single_clip=augment == "ssl",
    )


def eval_clips(
    shards: Source,
    *,
    keep: str | Path | None = None,
    views: int = 1,
    crops: int = 1,
    num_frames: int = 8,
    frame_stride: int = 8,
    fps: float = 30.0,
    size: int = 224,
    batch_size: int = 16,
    fields: Sequence[str] = (),
    samples: Sequence[int] | npt.NDArray[np.int64] | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    options: Mapping[str, Any] | None = None,
) -> EvalLoader:
    """Open an evaluation loader: uniform clips of every sample, each sample exactly once over all ranks.

    Args:
        shards: Folder or address of a shard set, or what `open_shards` returned.
        keep: File that lists the samples of the set to use, as for `open_shards`; weights mean nothing here. The
            samples are numbered among themselves. None for all samples.
        views: Uniform clips per video.
        crops: Squares per clip: 1 (the central one) or 3 (along the long side).
        num_frames: Frames per clip (T).
        frame_stride: Distance between two frames of a clip, in frames at `fps` (tau).
        fps: Frame rate at which clips are sampled, in frames per second.
        size: Side of the square clips in pixels.
        batch_size: Videos per batch on this rank.
        fields: Fields of the samples that batches have besides, as in `clips`.
        samples: Numbers of the samples to evaluate, each once; None for all, in order.
        rank: This rank; None to find it out, from torch.distributed or from the launcher.
        world_size: Number of ranks; None to find it out.
        device: Device of the batches; None for this process's GPU, or the CPU where there is none.
        dtype: Type of the pixels: float32, or float16 on a GPU.
        options: Any other option of the sections `clips`, `augment` and `data`, as in `clips`.

    Returns:
        The loader. `len(loader)` is its number of batches on this rank.

    Raises:
        ConfigError: An argument is wrong, or options do not fit together.
        ShardError: The shard set cannot be opened.
    """
    given = {"num_clips": 1, "num_frames": num_frames, "frame_stride": frame_stride, "fps": fps}
    sections = _parse(given, size, "none", options)
    place = _find_place(rank, world_size)
    where = _find_device(device, dtype)
    for name, value, most in (("batch_size", batch_size, 1 << 24), ("views", views, 1024)):
        _check_number(name, value, 1, most)
    if crops not in (1, 3):
        raise ConfigError(f"crops={crops!r} must be 1 or 3")
    opened = open_set(shards, keep, sections.data)
    return EvalLoader(
        opened,
        clips=sections.clips,
        augment=sections.augment,
        data=sections.data,
        batch_size=batch_size,
        views=views,
        crops=crops,
        samples=None if samples is None else _check_samples(samples, opened),
        rank=place[0],
        world_size=place[1],
        device=where,
        dtype=dtype,
        fields=fields,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sections:
    """The checked options of a loader."""

    clips: ClipConfig
    augment: AugmentConfig
    data: DataConfig


def _ssl(size: int) -> dict[str, Any]:
    return {}


def _supervised(size: int) -> dict[str, Any]:
    # The short side is 256 to 320 at a size of 224, as in the literature, and in proportion to other sizes.
    return {"crop": "short_side", "short_side": (size * 256 / 224, size * 320 / 224), **_PLAIN}


def _none(size: int) -> dict[str, Any]:
    return {"crop": "center", "flip": 0.0, **_PLAIN}


_PLAIN = {"color": 0.0, "gray": 0.0, "blur": 0.0}
_AUGMENTATIONS: dict[str, Callable[[int], dict[str, Any]]] = {"ssl": _ssl, "supervised": _supervised, "none": _none}


def _parse(clip_values: dict[str, Any], size: int, augment: str, options: Mapping[str, Any] | None) -> _Sections:
    """Check all options; raise ConfigError for the first that is wrong."""
    if not isinstance(augment, str) or augment not in _AUGMENTATIONS:
        raise ConfigError(f"augment={augment!r} must be one of {', '.join(map(repr, _AUGMENTATIONS))}")
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"options={options!r} must be a mapping", hint='for example options={"data.threads": 8}')
    parse_section(AugmentConfig, {"size": size}, "augment")
    values: dict[str, dict[str, Any]] = {
        "clips": clip_values,
        "augment": {"size": size, **_AUGMENTATIONS[augment](size)},
        "data": {},
    }
    for key, value in (options or {}).items():
        section, _, name = str(key).partition(".")
        if section not in values or not name:
            raise ConfigError(
                f"options: unknown key {key!r}", hint="keys are those of clips, augment and data, such as data.threads"
            )
        if key in _ARGUMENTS:
            raise ConfigError(f"options: {key!r} is an argument of its own", hint=f"pass {_ARGUMENTS[key]}=...")
        values[section][name] = value
    return _Sections(
        clips=parse_section(ClipConfig, values["clips"], "clips"),
        augment=parse_section(AugmentConfig, values["augment"], "augment"),
        data=parse_section(DataConfig, values["data"], "data"),
    )


def _check_number(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{name}={value!r} must be a whole number in [{least}, {most}]")


def _find_place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and number of ranks, as given or as found out."""
    if rank is None and world_size is None:
        return find_place()
    if rank is None or world_size is None:
        missing = "rank" if rank is None else "world_size"
        raise ConfigError(f"rank={rank}, world_size={world_size}: {missing} is missing", hint="pass both or neither")
    _check_number("world_size", world_size, 1, 1 << 24)
    _check_number("rank", rank, 0, world_size - 1)
    return rank, world_size


def _find_device(device: torch.device | str | None, dtype: torch.dtype) -> torch.device:
    """Return the device as given or as found out; raise ConfigError if the loader has nothing for it."""
    try:
        found = find_device() if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device={device!r}: {str(error).splitlines()[0]}") from None
    count = torch.cuda.device_count() if found.type == "cuda" else 0
    if found.type not in ("cpu", "cuda") or (found.type == "cuda" and (found.index or 0) >= count):
        raise ConfigError(
            f"device={str(found)!r}: there is no such device for clips; this machine has "
            f"{torch.cuda.device_count()} CUDA devices",
            hint='pass device="cpu" and move batches yourself: views.to(device)',
        )
    if dtype not in (torch.float32, torch.float16) or (dtype == torch.float16 and found.type == "cpu"):
        raise ConfigError(f"dtype={dtype} must be torch.float32, or torch.float16 on a GPU (device={str(found)!r})")
    return found


def _check_samples(samples: object, shards: ShardSet) -> npt.NDArray[np.int64]:
    """Return numbers of samples, i64[N]; raise ConfigError if they are none of the set, or not distinct."""
    try:
        numbers = np.asarray(samples)
    except ValueError as error:
        raise ConfigError(f"samples: {error}") from None
    if numbers.size == 0:
        numbers = numbers.reshape(-1).astype(np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ConfigError(f"samples: must be a list of whole numbers, got {numbers.dtype}{list(numbers.shape)}")
    wrong = numbers[(numbers < 0) | (numbers >= len(shards))]
    if len(wrong):
        raise ConfigError(f"samples: {wrong[0]} is not in [0, {len(shards)}), the samples of {shards.where}")
    if len(np.unique(numbers)) < len(numbers):
        raise ConfigError("samples: a number is listed twice; each sample is evaluated once")
    return numbers.astype(np.int64)
