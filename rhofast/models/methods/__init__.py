"""Pretraining methods by name.

To add a method, write a file with its options (a `Section`) and its class (a `Method`), and add a line to METHODS. A
method outside the package is named by its function or class (user_method.py).
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from rhofast.config.section import Section, parse_section
from rhofast.errors import ConfigError
from rhofast.models.methods.byol import BYOL, BYOLConfig
from rhofast.models.methods.lejepa import LeJEPA, LeJEPAConfig
from rhofast.models.methods.method import Method
from rhofast.models.methods.moco import MoCo, MoCoConfig
from rhofast.models.methods.moco_v3 import MoCoV3, MoCoV3Config
from rhofast.models.methods.simclr import SimCLR, SimCLRConfig
from rhofast.models.methods.swav import SwAV, SwAVConfig
from rhofast.models.methods.user_method import user_method
from rhofast.storage.user_code import FORMS, is_reference

METHODS: dict[str, tuple[type[Section], Any]] = {
    "byol": (BYOLConfig, BYOL),
    "moco": (MoCoConfig, MoCo),
    "simclr": (SimCLRConfig, SimCLR),
    "swav": (SwAVConfig, SwAV),
    "moco_v3": (MoCoV3Config, MoCoV3),
    "lejepa": (LeJEPAConfig, LeJEPA),
}


def build_method(name: str, options: Mapping[str, Any], backbone: nn.Module) -> Method:
    """Build a method around a backbone.

    Args:
        name: one of METHODS, or a function of the user's own code, which is imported (storage/user_code.py).
        options: the options of the method.
        backbone: the backbone to train: [N, C, T, H, W] -> [N, num_features].

    Returns:
        The method, with freshly initialized heads.

    Raises:
        ConfigError: for an unknown name or option, or for code of the user's own that breaks the contract.
    """
    if is_reference(name):
        return user_method(name, options, backbone)
    if name not in METHODS:
        raise ConfigError(f"method.name={name!r} is not known", hint=f"known: {', '.join(METHODS)}; or {FORMS}")
    kind, build = METHODS[name]
    method: Method = build(backbone, parse_section(kind, options, where="method"))
    return method
