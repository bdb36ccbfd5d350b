"""Load weights that another program trained, by a table of names.

    file --read_weights--> content --WeightFormat.unwrap--> state dict --fill_backbone--> backbone, Imported

`WeightFormat` says what a format is; `weight_formats.py` holds those that there are, and weight_file.py reads files.
Nothing is skipped or converted silently: an import reports the entries that it used, ignored and missed, and refuses
the weights of another network, other types of numbers, and values that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rhofast.config.schema import Config
from rhofast.errors import ConfigError
from rhofast.models.weight_fit import find_not_finite, misfit_of, shown

_SHOWN = 4  # names of a list that an error message shows


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What happened to the entries of a state dict.

    Attributes:
        matched: entries of the file that the backbone took.
        dropped: entries of the file that do not belong to a backbone (heads, momentum networks, queues).
        missing: entries that the file lacks and that keep their initial values (batch norm's counters of batches).
    """

    matched: list[str]
    dropped: list[str]
    missing: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyTable:
    """How the names in a file correspond to those of a backbone.

    Attributes:
        names: the name in the file -> the name in the backbone's state dict, for all entries of the backbone.
        is_other: whether a name in the file belongs to something that is not the backbone.
        hint: what an error message says about the network in the file.
    """

    names: Mapping[str, str]
    is_other: Callable[[str], bool]
    hint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFormat:
    """A format of weight files.

    Attributes:
        title: what messages call such a file.
        backbones: names of the backbones that can be loaded from it.
        recognizes: whether the content of a file (as `read_weights` returns it) has this format.
        unwrap: returns the state dict in the content of a file.
        keys_in: returns the table of names for a backbone (its name, the network) and a state dict.
        expected_input: returns what the network was trained with, for a backbone's name and the content of a file:
            num_frames, frame_stride, fps, size (pixels), mean and std of each channel; None or absent if unknown.
        backbone_of: returns the backbone's name that the name of a file tells, or None if it tells none. None in its
            place: the name of the file says nothing, so the config names the backbone.
        write: returns the content of a file for a backbone, its run's config and the epoch; raises ConfigError where
            the other program cannot build the network. None: the format is read only.
    """

    title: str
    backbones: tuple[str, ...]
    recognizes: Callable[[Mapping[Any, Any]], bool]
    unwrap: Callable[[Mapping[str, Any]], Mapping[str, Tensor]]
    keys_in: Callable[[str, nn.Module, Mapping[str, Tensor]], KeyTable]
    expected_input: Callable[[str, Mapping[str, Any]], dict[str, Any]]
    backbone_of: Callable[[str], str | None] | None = None
    write: Callable[[nn.Module, Config, int], dict[str, Any]] | None = None


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
    matched = [key for key in state if key in table.names]
    dropped = [key for key in state if key not in table.names and table.is_other(key)]
    missing = [key for key in table.names if key not in state]
    unlike = [key for key in matched if state[key].shape != own[table.names[key]].shape]
    misfits = {key: misfit_of(own[table.names[key]], state[key], exact=False) for key in matched if key not in unlike}
    wrong = {
        "of another shape": [
            f"{key} {list(state[key].shape)}, here {list(own[table.names[key]].shape)}" for key in unlike
        ],
        "of another type": [f"{key} {misfit}" for key, misfit in misfits.items() if misfit is not None],
        "not known": [key for key in state if key not in table.names and not table.is_other(key)],
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
    backbone.load_state_dict({table.names[key]: state[key] for key in matched}, strict=False)
    return Imported(matched=matched, dropped=dropped, missing=missing)


def is_state(loaded: object) -> bool:
    """Return whether a value is a dict of names and tensors."""
    return isinstance(loaded, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
    )


def list_names(names: list[str]) -> str:
    """Return the first names of a list and the number of the others, for a message."""
    rest = len(names) - _SHOWN
    return ", ".join(map(shown, names[:_SHOWN])) + (f" and {rest} more" if rest > 0 else "")
