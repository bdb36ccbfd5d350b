"""Load weights that another program trained, by a table of names.

    file --open_weights--> WeightFile --WeightFormat.part--> state dict --fill_backbone--> backbone, Imported

`WeightFormat` says what a format is; the folder `weight_formats` holds those that there are, and weight_file.py reads
files. Nothing is skipped or converted silently: an import reports the entries that it used, ignored and missed, and
refuses the weights of another network, other types of numbers, and values that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rhofast.config.schema import Config
from rhofast.errors import ConfigError
from rhofast.models.weight_file import WeightFile
from rhofast.models.weight_fit import find_not_finite, misfit_of, shown

WHOLE = ""  # the part of a file that is all of its content
_SHOWN = 4  # names of a list that an error message shows


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What happened to the entries of a state dict.

    Attributes:
        matched: entries of the file that the backbone took.
        dropped: entries of the file that do not belong to a backbone (heads, momentum networks, queues).
        missing: entries of the backbone that the file lacks and that keep their initial values: batch norm's counters
            of batches, by the names in the file, and biases of 0 where the other network has none, by the backbone's.
    """

    matched: list[str]
    dropped: list[str]
    missing: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Computed:
    """An entry of the backbone that is computed from entries of the file, such as three layers joined to one.

    Attributes:
        names: names in the file. Empty: the other network has no such entry, and the backbone's keeps its initial
            values.
        compute: takes the tensors of these names and returns the backbone's. It may raise RuntimeError or IndexError
            for shapes that do not fit.
    """

    names: tuple[str, ...]
    compute: Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyTable:
    """How the names in a file correspond to those of a backbone.

    Attributes:
        names: the name in the file -> the name in the backbone's state dict, for the entries that are the same.
        computed: the name in the backbone's state dict -> how it is computed, for all others.
        is_other: whether a name in the file belongs to something that is not the backbone.
        hint: what an error message says about the network in the file.
    """

    names: Mapping[str, str]
    is_other: Callable[[str], bool]
    hint: str
    computed: Mapping[str, Computed] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFormat:
    """A format of weight files.

    Attributes:
        title: what messages call such a file.
        backbones: names of the backbones that can be loaded from it.
        part: returns where the state dict is in the content of a file: the name of an entry, or WHOLE. None: the file
            has another format.
        keys_in: returns the table of names for a backbone (its name, the network) and a state dict.
        expected_input: returns what the network was trained with, for a backbone's name and a file: num_frames,
            frame_stride, fps, size (pixels), mean and std of each channel; None or absent if unknown.
        options_in: returns the backbone's options for a file and the options that the user gave; raises ConfigError
            where these do not suit. None: the user's are all there are.
        backbone_of: returns the backbone's name that the name of a file tells, or None if it tells none. None in its
            place: the name of the file says nothing, so the config names the backbone, unless there is only one.
        write: returns the content of a file for a backbone, its run's config and the epoch; raises ConfigError where
            the other program cannot build the network. None: the format is read only.
    """

    title: str
    backbones: tuple[str, ...]
    part: Callable[[Mapping[Any, Any]], str | None]
    keys_in: Callable[[str, nn.Module, Mapping[str, Tensor]], KeyTable]
    expected_input: Callable[[str, WeightFile], dict[str, Any]]
    options_in: Callable[[WeightFile, Mapping[str, Any]], dict[str, Any]] | None = None
    backbone_of: Callable[[str], str | None] | None = None
    write: Callable[[nn.Module, Config, int], dict[str, Any]] | None = None

    def recognizes(self, content: Mapping[Any, Any]) -> bool:
        """Return whether the content of a file has this format."""
        return self.part(content) is not None

    def unwrap(self, content: Mapping[Any, Any]) -> Mapping[str, Tensor]:
        """Return the state dict in the content of a file of this format."""
        part = self.part(content)
        assert part is not None, "recognizes"
        state: Mapping[str, Tensor] = content if part == WHOLE else content[part]
        return state

    def other_parts(self, content: Mapping[Any, Any]) -> list[str]:
        """Return the names of other state dicts in the content of a file, such as `predictor.*`."""
        part = self.part(content)
        if part == WHOLE:
            return []
        return [f"{name}.*" for name, value in content.items() if name != part and value and is_state(value)]


def fill_backbone(backbone: nn.Module, state: Mapping[str, Tensor], table: KeyTable) -> Imported:
    """Load a state dict into a backbone, in place.

    Args:
        backbone: the backbone. It stays as it was if the state dict does not fit.
        state: names and tensors, as in the file.
        table: the correspondence of names.

    Returns:
        What happened to each entry.

    Raises:
        ConfigError: if an entry of the backbone other than batch norm's counters is missing, or has another shape or
            another type of number, or values that are not finite, or if an entry of the state dict is unknown.
    """
    own = backbone.state_dict()
    sources = {name for computed in table.computed.values() for name in computed.names}
    matched = [key for key in state if key in table.names or key in sources]
    unknown = [key for key in state if key not in table.names and key not in sources]
    missing = [key for key in (*table.names, *sorted(sources)) if key not in state]
    kept = [key for key, computed in table.computed.items() if not computed.names]
    filled, unlike, misfits = _converted(own, state, table)
    wrong = {
        "of another shape": unlike,
        "of another type": misfits,
        "not known": [key for key in unknown if not table.is_other(key)],
        "missing": [key for key in missing if not key.endswith("num_batches_tracked")],
    }
    if not matched:
        raise ConfigError("no entry of the file belongs to this backbone", hint=table.hint)
    if any(wrong.values()):
        lists = [f"{len(names)} {what}: {list_names(names)}" for what, names in wrong.items() if names]
        raise ConfigError(
            f"the file's weights are those of another network; entries {'; '.join(lists)}", hint=table.hint
        )
    broken = find_not_finite({key: state[key] for key in matched})
    if broken is not None:
        raise ConfigError(f"the file's weights are not finite: {broken}", hint="the training that wrote it diverged")
    absent = set(own) - set(filled) - set(kept) - {table.names[key] for key in missing if key in table.names}
    assert not absent, f"the table of names lacks {sorted(absent)}"
    backbone.load_state_dict(filled, strict=False)
    dropped = [key for key in unknown if table.is_other(key)]
    return Imported(matched=matched, dropped=dropped, missing=[*missing, *kept])


def _converted(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], table: KeyTable
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return the entries of the backbone that a state dict has, and those of another shape and another type."""
    filled: dict[str, Tensor] = {}
    unlike, misfits = [], []
    for key, name in table.names.items():
        if key not in state:
            continue
        if state[key].shape != own[name].shape:
            unlike.append(f"{key} {list(state[key].shape)}, here {list(own[name].shape)}")
        elif (misfit := misfit_of(own[name], state[key], exact=False)) is not None:
            misfits.append(f"{key} {misfit}")
        else:
            filled[name] = state[key]
    for name, computed in table.computed.items():
        if not computed.names or any(key not in state for key in computed.names):
            continue
        tensors = [state[key] for key in computed.names]
        like = [torch.empty(tensor.shape, dtype=own[name].dtype, device="meta") for tensor in tensors]
        found = [misfit_of(one, tensor, exact=False) for one, tensor in zip(like, tensors, strict=True)]
        if any(found):
            misfits += [f"{key} {misfit}" for key, misfit in zip(computed.names, found, strict=True) if misfit]
            continue
        shapes = ", ".join(f"{key} {list(state[key].shape)}" for key in computed.names)
        try:
            value = computed.compute(*tensors)
        except (RuntimeError, IndexError):
            unlike.append(shapes)
            continue
        if value.shape == own[name].shape:
            filled[name] = value
        else:
            unlike.append(f"{shapes}, here {list(own[name].shape)}")
    return filled, unlike, misfits


def is_state(loaded: object) -> bool:
    """Return whether a value is a dict of names and tensors."""
    return isinstance(loaded, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
    )


def list_names(names: list[str]) -> str:
    """Return the first names of a list and the number of the others, for a message."""
    rest = len(names) - _SHOWN
    return ", ".join(map(shown, names[:_SHOWN])) + (f" and {rest} more" if rest > 0 else "")
