"""Every option is described where it is declared."""

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from rhofast.config.load import load_config
from rhofast.config.schema import ComponentConfig, Config, SourceConfig
from rhofast.config.section import Section
from rhofast.errors import ConfigError
from rhofast.models.backbones.slow import SlowConfig
from rhofast.models.backbones.torchvision_video import TorchvisionConfig
from rhofast.models.backbones.vit import ViTConfig
from rhofast.models.methods import METHODS

SECTIONS = [
    field.annotation
    for field in Config.model_fields.values()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
]
OPTIONS = [options for options, _ in METHODS.values()]


@pytest.mark.parametrize(
    "section", [Config, SourceConfig, ComponentConfig, *SECTIONS, *OPTIONS, SlowConfig, TorchvisionConfig, ViTConfig]
)
def test_every_option_has_a_description(section: type[BaseModel]) -> None:
    descriptions = {name: field.description or "" for name, field in section.model_fields.items()}
    assert [name for name, description in descriptions.items() if not description.endswith(".")] == []


def test_a_description_stands_below_its_option() -> None:
    assert (SourceConfig.model_fields["shards"].description or "").startswith("Folder of the shard set, or its address")


def options_of(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section) and inner is not ComponentConfig:
            yield from options_of(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.parametrize("option", [option for option in options_of(Config) if option != "name"])
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e308", "9" * 26, "[inf, inf]", "[nan, 1.0]"])
def test_no_option_takes_a_number_that_nothing_can_hold(option: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"{option}={value}"])
    assert "\n" not in str(caught.value)
