"""Build what training needs: shards, accelerator, loader, model, optimizer.

open_training_shards --> build_loader --> Views --.
build_accelerator --> build_model --------------> train_step --> metrics
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from rhofast.checkpoint.backbone import untrained_backbone
from rhofast.config.schema import Config, TrainConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.sources import open_training
from rhofast.distributed.collectives import gather_objects
from rhofast.distributed.process_group import join_again, launched, world_size
from rhofast.errors import ConfigError
from rhofast.models.activation_checkpointing import checkpoint_blocks
from rhofast.models.batch_norm import SyncBatchNorm
from rhofast.models.convolution_check import check_convolutions
from rhofast.models.memory_format import to_channels_last
from rhofast.models.methods import build_method
from rhofast.models.methods.method import Method
from rhofast.training.code_check import check_user_code
from rhofast.training.optim import build_optimizer


def check_accumulation(method: Method, section: TrainConfig, ranks: int) -> None:
    """Refuse `train.accumulate` where it would change what a step computes.

    A sum over micro-batches is the gradient of the whole batch if the loss is a mean over videos, each alone with what
    does not change within a step (`Method.coupling` is None), and if no layer looks across videos either: batch norm
    does, unless its statistics are frozen (evaluation mode). `train.micro_batch_norm` accepts the latter: micro-batches
    are then to batch norm what more ranks with smaller shares would be.

    Args:
        method: The method, on any device.
        section: `train` of the configuration.
        ranks: Processes of the run.

    Raises:
        ConfigError: The batch cannot be split, or the result would be another one.
    """
    accumulate = section.accumulate
    if accumulate == 1:
        return
    if section.batch_size % (ranks * accumulate):
        raise ConfigError(
            f"train.batch_size={section.batch_size} cannot be split over {ranks} ranks with "
            f"train.accumulate={accumulate} equal micro-batches each",
            hint=f"take a multiple of {ranks * accumulate}",
        )
    if method.coupling is not None:
        raise ConfigError(
            f"train.accumulate={accumulate} would change the loss: {method.coupling}",
            hint="for less memory set train.checkpoint_activations=true, use more ranks, or reduce train.batch_size",
        )
    batch_norm = nn.modules.batchnorm._BatchNorm
    norms = [name for name, module in method.named_modules() if isinstance(module, batch_norm) and module.training]
    if norms and not section.micro_batch_norm:
        raise ConfigError(
            f"train.accumulate={accumulate} would change the statistics of {len(norms)} batch norms ({norms[0]}, ...): "
            "they are those of the whole batch, and would be those of micro-batches",
            hint="set train.micro_batch_norm=true to accept that; it is as if more ranks had a smaller share each",
        )


def check_pretraining(config: Config) -> None:
    """Raise ConfigError for settings that mean something where a classifier is trained, and nothing here."""
    if config.optim.layer_decay != 1:
        raise ConfigError(
            f"optim.layer_decay={config.optim.layer_decay:g}: pretraining has one rate for all layers",
            hint="set optim.layer_decay=1; layer-wise decay is for rhofast eval finetune",
        )
    if config.augment.mixes:
        raise ConfigError(
            f"augment.mixup={config.augment.mixup:g}, augment.cutmix={config.augment.cutmix:g}: pretraining has no "
            "labels to mix",
            hint="set both to 0; mixing is for rhofast eval finetune",
        )


def open_training_shards(config: Config) -> Mixture:
    """Open what the run trains on; raise ConfigError or ShardError."""
    num_ranks, ranks_per_node = launched()
    sources = open_training(
        config.data,
        world_size=num_ranks,
        node_size=ranks_per_node,
        clips=config.clips,
        epochs=config.train.epochs,
    )
    return Mixture(sources.sets, sources.weights)


def build_accelerator(config: Config) -> Accelerator:
    """Return Accelerate's view of this process: its place among the ranks, its device and its precision."""
    join_again(config.train.timeout_s)
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision={"fp32": "no"}.get(config.train.precision, config.train.precision),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=config.train.timeout_s)),
        ],
    )


def check_same_data(digest: str) -> None:
    """Raise ConfigError, on every rank, if ranks have opened data of different digests."""
    digests = gather_objects(digest)
    for rank, other in enumerate(digests):
        if other != digests[0]:
            raise ConfigError(
                f"data.train: rank {rank} has opened other data than rank 0",
                hint="give all nodes the same shards, the same lists of samples (keep) and the same boxes",
            )


def build_loader(
    config: Config,
    accelerator: Accelerator,
    shards: ShardSet | Mixture,
    bad_log: Path | None,
    *,
    duplicate_single_clip: bool = True,
    fields: Sequence[str] = (),
) -> TrainLoader:
    """Return this rank's training loader.

    Args:
        config: The configuration of the run.
        accelerator: Knows rank and device.
        shards: What to train on.
        bad_log: The file that lists bad samples, or None.
        duplicate_single_clip: With `clips.num_clips=1`, return each clip twice, differently augmented.
        fields: Fields of the samples that batches have besides.

    Raises:
        ConfigError: The loader's settings do not fit together, or ranks have opened different data.
    """
    device = accelerator.device
    check_same_data(shards.digest)
    return TrainLoader(
        shards,
        clips=config.clips,
        augment=config.augment,
        data=config.data,
        batch_size=config.train.batch_size,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        device=device,
        dtype=torch.float16 if device.type == "cuda" and config.train.precision != "fp32" else torch.float32,
        bad_log=bad_log,
        duplicate_single_clip=duplicate_single_clip,
        fields=fields,
    )


def build_model(
    config: Config, accelerator: Accelerator, *, build: Callable[[Config], nn.Module] = untrained_backbone
) -> tuple[nn.Module, Method, AcceleratedOptimizer]:
    """Build what `train_step` needs, with the same weights on every rank.

    Args:
        config: The configuration of the run.
        accelerator: Prepares model and optimizer.
        build: Builds the backbone.

    Returns:
        The model as `accelerator.prepare` wraps it, the method within, and the optimizer.

    Raises:
        ConfigError: Settings that do not fit together.
    """
    check_pretraining(config)
    check_user_code(config, accelerator.device)
    method = build_method(config.method.name, config.method.options, build(config)).to(accelerator.device)
    try:
        method.check(max(2, config.clips.num_clips), config.train.batch_size)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    check_accumulation(method, config.train, accelerator.num_processes)
    _check_batch_norm(method, config, accelerator.num_processes)
    if config.train.channels_last:
        method = to_channels_last(method)
    clips = config.train.batch_size // (accelerator.num_processes * config.train.accumulate)
    check_convolutions(method, method.backbone, config, precision=config.train.precision, clips=clips, gradients=True)
    optimizer = build_optimizer(method, config.optim)
    if config.train.compile:
        for module in method.children():
            module.compile()  # in place: names in the state dict stay
    recompute_activations(method.backbone, config)
    model, prepared = prepare(accelerator, method, optimizer)
    return model, method, prepared


def recompute_activations(backbone: nn.Module, config: Config) -> None:
    """Do what `train.checkpoint_activations` says to a trained backbone, in place.

    Args:
        backbone: The network.
        config: The configuration.

    Raises:
        ConfigError: The network has no blocks.
    """
    if config.train.checkpoint_activations and not checkpoint_blocks(backbone):
        raise ConfigError(
            f"train.checkpoint_activations=true: backbone.name={config.backbone.name} has no blocks to compute again",
            hint="set train.checkpoint_activations=false",
        )


def _check_batch_norm(method: Method, config: Config, ranks: int) -> None:
    """Raise ConfigError where a batch norm of the heads would get a single video, whose values have no spread."""
    if config.train.batch_size // (ranks * config.train.accumulate) != 1:
        return
    for name, module in method.named_modules():
        alone = not isinstance(module, SyncBatchNorm) or world_size(module.group) == 1
        if "backbone." not in name and isinstance(module, nn.modules.batchnorm._BatchNorm) and alone:
            raise ConfigError(
                f"train.batch_size={config.train.batch_size} leaves 1 video per rank and micro-batch; batch norm "
                f"{name!r} needs at least 2",
                hint="increase train.batch_size, use fewer ranks or a smaller train.accumulate, or set "
                "method.batch_norm=sync",
            )


def prepare(
    accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """Return module and optimizer as the accelerator runs them."""
    with warnings.catch_warnings():  # newer torch has another name for broadcast_buffers, older torch only this one
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        model, prepared = accelerator.prepare(module, optimizer)
    # This is about dimensions of one element, whose strides mean nothing; each rank would say so in the first backward.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
    return model, prepared


def run_length(config: Config, steps_per_epoch: int) -> tuple[int, float]:
    """Return the steps and the epochs of the whole run."""
    if config.train.steps is not None:
        return config.train.steps, config.train.steps / steps_per_epoch
    assert config.train.epochs is not None
    return max(1, round(config.train.epochs * steps_per_epoch)), config.train.epochs
