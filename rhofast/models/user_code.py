"""Call functions of the user's own code with the options of a config.

    def backbone(options: MyOptions) -> nn.Module           models/backbones/user_backbone.py
    def method(backbone: nn.Module, options: MyOptions) -> Method              models/methods/user_method.py

`MyOptions` derives from `Section`; its fields are the keys of the config's section besides `name`. A function without
that parameter has no options. A class does as well as a function. Every breach is one line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from rhofast.config.section import Section, parse_section
from rhofast.errors import ConfigError
from rhofast.storage.user_code import failures_of

_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class NoOptions(Section):
    """The options of a function that takes none."""


def parsed_options(
    function: Callable[..., Any], before: int, options: Mapping[str, Any], *, section: str, where: str
) -> list[Section]:
    """Return the options as arguments of a function: one instance of its option class, or nothing.

    Args:
        function: The function, or the class.
        before: Number of its arguments before the options.
        options: The options by name.
        section: The section of the config that holds them.
        where: Option and name of the function, for error messages.

    Raises:
        ConfigError: The function has other parameters or no option class, or an option is unknown or has a bad value.
    """
    with failures_of(f"{where}: its parameters cannot be read"):
        parameters = [one for one in inspect.signature(function).parameters.values() if one.kind in _NAMED]
        hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    required = [one.name for one in parameters[before + 1 :] if one.default is inspect.Parameter.empty]
    if len(parameters) < before or required:
        takes = "(backbone, options)" if before else "(options)"
        given = ", ".join(one.name for one in parameters)
        raise ConfigError(f"{where}: it takes ({given}), and is called with {takes}")
    if len(parameters) == before:
        parse_section(NoOptions, options, where=section)
        return []
    kind = hints.get(parameters[before].name)
    if not (inspect.isclass(kind) and issubclass(kind, Section)):
        raise ConfigError(
            f"{where}: its parameter {parameters[before].name!r} has no option class",
            hint="annotate it with a class derived from rhofast.config.section.Section",
        )
    if "name" in kind.model_fields:
        raise ConfigError(f"{where}: {kind.__name__}.name clashes with {section}.name", hint="rename the option")
    return [parse_section(kind, options, where=section)]
