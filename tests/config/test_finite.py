"""No number of a config may be infinite or NaN: the error names the key."""

from __future__ import annotations

import typing
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from rhofast.config.load import load_config
from rhofast.config.schema import Config
from rhofast.config.section import Section, parse_section
from rhofast.errors import ConfigError
from rhofast.models.backbones.slow import SlowConfig
from rhofast.models.backbones.torchvision_video import TorchvisionConfig
from rhofast.models.backbones.vit import ViTConfig
from rhofast.models.methods import METHODS


def number_fields(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Yield the keys of all options of a section and of the sections in it that are single floats."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        if float in kinds:
            yield above + name
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from number_fields(kind, f"{above}{name}.")


KEYS = sorted(key for key in number_fields(Config) if not key.startswith("data.train."))  # that one is a list


def test_the_walk_finds_numbers_in_every_section() -> None:
    assert {"data.cache_gb", "data.timeout_s", "train.timeout_s", "optim.base_lr", "augment.hue"} <= set(KEYS)
    assert len(KEYS) > 20


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_no_number_is_infinite(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key.rpartition(".")[2]):
        load_config(None, [f"{key}={value}"])


def test_no_weight_of_a_data_set_is_infinite() -> None:
    with pytest.raises(ConfigError, match="weight"):
        load_config(None, ['data.train=[{shards="a", weight=inf}]'])


OPTIONS = [SlowConfig, TorchvisionConfig, ViTConfig, *(options for options, _ in METHODS.values())]


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind in OPTIONS for key in number_fields(kind)])
def test_no_option_of_a_network_or_method_is_infinite(kind: type[Section], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse_section(kind, {key: float("inf")}, "options")
