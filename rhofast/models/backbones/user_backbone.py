"""Backbones of the user's own code: a function or class that takes its options and returns [N, 3, T, H, W] -> [N, D].

What it returns is an `nn.Module` with the attribute `num_features`, which is D. It can be copied (`copy.deepcopy`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rhofast.errors import ConfigError
from rhofast.models.user_code import parsed_options
from rhofast.storage.user_code import failures_of, import_function


def user_backbone(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Build a backbone with a function of the user's own.

    The network is built on the CPU even where torch's default device is "meta", because many libraries compute with
    values while they build; on the meta device it is returned without its values.

    Args:
        name: `package.module:function` or `path/to/file.py:function`. This imports it.
        options: The options of the backbone.

    Raises:
        ConfigError: It cannot be imported or built, or breaks the contract.
    """
    where = f"backbone.name={name}"
    function = import_function(name, "backbone.name").call
    arguments = parsed_options(function, 0, options, section="backbone", where=where)
    with failures_of(where), torch.device("cpu"):
        network = function(*arguments)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{where}: it returns a {type(network).__name__}, not a torch.nn.Module")
    width = getattr(network, "num_features", None)
    if type(width) is not int or width < 1:
        raise ConfigError(f"{where}: its attribute num_features is {width!r}, not the number of features")
    for tensor in (*network.parameters(), *network.buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ConfigError(f"{where}: it has layers without a shape, such as LazyLinear", hint="give their sizes")
    return network.to("meta") if torch.get_default_device().type == "meta" else network


def check_clips(backbone: nn.Module, name: str, *, num_frames: int, size: int) -> None:
    """Check what a backbone of the user's own returns for the run's clips.

    A copy without values runs on the meta device. If it cannot, as with code that looks at values, a copy runs on the
    CPU. Neither changes the backbone or torch's generator.

    Args:
        backbone: The backbone, on any device.
        name: Its name in the config.
        num_frames: Frames per clip.
        size: Height and width in pixels.

    Raises:
        ConfigError: The backbone does not take these clips, or returns anything but [N, num_features].
    """
    where = f"backbone.name={name}"
    shape = (2, 3, num_frames, size, size)
    clips = f"clips {list(shape)} (clips.num_frames={num_frames}, augment.size={size})"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            features = copy.deepcopy(backbone).to("meta").eval()(torch.empty(shape, device="meta"))
        except Exception as error:
            if any(tensor.is_meta for tensor in backbone.parameters()):
                with failures_of(f"{where} does not take {clips}"):
                    raise error
            with failures_of(f"{where} does not take {clips}"), torch.device("cpu"):
                features = copy.deepcopy(backbone).to("cpu").eval()(torch.zeros(shape))
    wanted = [shape[0], backbone.num_features]
    if not isinstance(features, Tensor):
        raise ConfigError(f"{where}: it returns a {type(features).__name__} for {clips}, not a tensor {wanted}")
    if list(features.shape) != wanted or not features.is_floating_point():
        kind = "" if features.is_floating_point() else f" of {features.dtype}"
        raise ConfigError(
            f"{where}: it returns {list(features.shape)}{kind} for {clips}, not {wanted} numbers",
            hint=f"num_features is {backbone.num_features}",
        )
