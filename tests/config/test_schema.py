"""Every option is described where it is declared."""

import pytest
from pydantic import BaseModel

from rhofast.config.schema import ComponentConfig, Config, SourceConfig
from rhofast.config.section import Section
from rhofast.models.backbones.slow import SlowConfig
from rhofast.models.backbones.torchvision_video import TorchvisionConfig
from rhofast.models.methods import METHODS

SECTIONS = [
    field.annotation
    for field in Config.model_fields.values()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
]
OPTIONS = [options for options, _ in METHODS.values()]


@pytest.mark.parametrize(
    "section", [Config, SourceConfig, ComponentConfig, *SECTIONS, *OPTIONS, SlowConfig, TorchvisionConfig]
)
def test_every_option_has_a_description(section: type[BaseModel]) -> None:
    descriptions = {name: field.description or "" for name, field in section.model_fields.items()}
    assert [name for name, description in descriptions.items() if not description.endswith(".")] == []


def test_a_description_stands_below_its_option() -> None:
    assert (SourceConfig.model_fields["shards"].description or "").startswith("Folder of the shard set, or its address")
