"""Methods of the user's own code: a function or class that takes a backbone and its options and returns a `Method`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from rhofast.errors import ConfigError
from rhofast.models.methods.method import Method
from rhofast.models.user_code import parsed_options
from rhofast.storage.user_code import failures_of, import_function


def user_method(name: str, options: Mapping[str, Any], backbone: nn.Module) -> Method:
    """Build a method with a function of the user's own.

    Args:
        name: `package.module:function` or `path/to/file.py:function`. This imports it.
        options: The options of the method.
        backbone: The backbone to train.

    Raises:
        ConfigError: It cannot be imported or built, or breaks the contract.
    """
    where = f"method.name={name}"
    function = import_function(name, "method.name").call
    arguments = parsed_options(function, 1, options, section="method", where=where)
    with failures_of(where):
        method = function(backbone, *arguments)
    if not isinstance(method, Method):
        raise ConfigError(f"{where}: it returns a {type(method).__name__}, not a rhofast.models.methods.method.Method")
    if getattr(method, "backbone", None) is not backbone:
        raise ConfigError(f"{where}: its attribute backbone is not the backbone that it is given")
    return method
