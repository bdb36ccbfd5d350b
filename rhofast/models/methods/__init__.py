"""Methods by name. Adding one: a file with its options and its class, and a line in METHODS."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from rhofast.config.section import Section, parse_section
from rhofast.errors import ConfigError
from rhofast.models.methods.byol import Byol, BYOLConfig
from rhofast.models.methods.method import Method
from rhofast.models.methods.moco import Moco, MoCoConfig
from rhofast.models.methods.simclr import Simclr, SimCLRConfig
from rhofast.models.methods.swav import Swav, SwAVConfig

METHODS: dict[str, tuple[type[Section], Any]] = {
    "byol": (BYOLConfig, Byol),
    "moco": (MoCoConfig, Moco),
    "simclr": (SimCLRConfig, Simclr),
    "swav": (SwAVConfig, Swav),
}


def build_method(name: str, options: Mapping[str, Any], backbone: nn.Module) -> Method:
    """A fresh method around a backbone. Raises ConfigError for an unknown name or option."""
    if name not in METHODS:
        raise ConfigError(f"method.name: {name!r} is not known", hint=f"known: {', '.join(METHODS)}")
    kind, build = METHODS[name]
    method: Method = build(backbone, parse_section(kind, options, where="method"))
    return method
