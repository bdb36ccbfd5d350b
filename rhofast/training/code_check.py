"""Check a method of the user's own code before a run begins: one pass with two videos, by the contract of `Method`."""

from __future__ import annotations

import torch
from torch import Tensor

from rhofast.checkpoint.backbone import untrained_backbone
from rhofast.config.schema import Config
from rhofast.distributed.collectives import gather_objects
from rhofast.distributed.process_group import world_size
from rhofast.errors import ConfigError
from rhofast.models.methods import build_method
from rhofast.models.methods.method import Method, TrainingProgress
from rhofast.storage.user_code import failures_of, imported_digests, is_reference

_VIDEOS = 2  # per rank: the fewest that batch norm takes


def check_user_code(config: Config, device: torch.device) -> None:
    """Check the user's own method, and that all ranks have imported the same files.

    A method is built and tried on the run's device, and thrown away. Call it on every rank.

    Args:
        config: The configuration of the run.
        device: The device of this rank.

    Raises:
        ConfigError: The method breaks its contract, or ranks have different files.
    """
    names = {"backbone": config.backbone.name, "method": config.method.name}
    if not any(map(is_reference, names.values())):
        return
    method = build_method(config.method.name, config.method.options, untrained_backbone(config))
    ranks = gather_objects(imported_digests(**names))
    for rank, digests in enumerate(ranks):
        for kind, digest in digests.items():
            if digest != ranks[0].get(kind):
                raise ConfigError(f"{kind}.name={names[kind]}: rank {rank} has imported another file than rank 0")
    if is_reference(config.method.name):
        _try(method.to(device), config, device)


def _try(method: Method, config: Config, device: torch.device) -> None:
    """Run the passes of one step, and check what they return and which gradients they leave."""
    where = f"method.name={config.method.name}"
    clips, share = max(2, config.clips.num_clips), config.train.batch_size // (world_size() * config.train.accumulate)
    with failures_of(where):
        try:
            method.check(clips, config.train.batch_size)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        try:
            method.check(clips, _VIDEOS * world_size())
            videos = _VIDEOS
        except ValueError:  # it takes no batch as small as that
            videos = share
        shape = (min(videos, share), clips, 3, config.clips.num_frames, config.augment.size, config.augment.size)
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        method.begin_step(TrainingProgress(step=0, epoch=0.0, epochs=1.0))
        for pass_index in range(_passes(method, clips, where)):
            method.zero_grad(set_to_none=True)
            loss = _loss_of(method(pixels, pass_index), where)
            loss.backward()  # type: ignore[no-untyped-call]
        idle = [name for name, tensor in method.named_parameters() if tensor.requires_grad and tensor.grad is None]
        if idle:
            raise ConfigError(
                f"{where}: the loss has no gradient for {idle[0]} ({len(idle)} parameters in all)",
                hint="use it, or set its requires_grad to False",
            )
        method.end_step()


def _passes(method: Method, clips: int, where: str) -> int:
    number = method.num_passes(clips)
    if type(number) is not int or number < 1:
        raise ConfigError(f"{where}: num_passes({clips}) returns {number!r}, not a number of passes")
    return number


def _loss_of(result: object, where: str) -> Tensor:
    """Return the loss of a pass; raise ConfigError if the pass returns anything but a loss and metrics."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise ConfigError(f"{where}: its forward returns a {type(result).__name__}, not (loss, metrics)")
    loss, metrics = result
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
        kind = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ConfigError(f"{where}: its loss is {kind}, not a scalar tensor with a gradient")
    for name, value in metrics.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.ndim != 0 or value.requires_grad:
            raise ConfigError(f"{where}: its metric {name!r} is not a detached scalar tensor")
    return loss
