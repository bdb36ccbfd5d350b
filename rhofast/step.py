"""A training step, and what it takes: shards, accelerator, loader, model, one update.

    open_training_shards --> build_loader --> Views --.
    build_accelerator --> build_model --------------> take_step --> metrics

A method splits a step into parts (one query clip each, say), and `train.accumulate` splits the batch; gradients add up,
and only the last backward meets the other ranks. No method's name is known here. Pretraining (train.py), fine-tuning
and benchmarks are made of these pieces, so what is measured is what runs.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn

from rhofast.agreement import BAD_GRADIENT, BAD_LOSS, OK
from rhofast.checkpoint.backbone import untrained_backbone
from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.train_loader import Loader
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.sources import open_training
from rhofast.distributed.process_group import join_again, launched, world_size
from rhofast.errors import ConfigError
from rhofast.models.activation_checkpointing import checkpoint_blocks
from rhofast.models.batch_norm import SyncBatchNorm
from rhofast.models.methods import build_method
from rhofast.models.methods.method import Method, Moment
from rhofast.optim import build_optimizer
from rhofast.training.setup import check_accumulation
from rhofast.training.step import run_step


def open_training_shards(config: Config) -> Mixture:
    """What the run trains on. Raises ConfigError, ShardError."""
    in_all, on_node = launched()
    sources = open_training(config.data, world_size=in_all, node_size=on_node)
    return Mixture(sources.sets, sources.weights)


def build_accelerator(config: Config) -> Accelerator:
    """This process's place among the ranks, its device and its arithmetic."""
    join_again(config.train.timeout)
    folder = str(config.folder)
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision={"fp32": "no"}.get(config.train.precision, config.train.precision),
        log_with=list(config.train.trackers) or None,
        project_config=ProjectConfiguration(project_dir=folder, logging_dir=str(config.folder / "tensorboard")),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=config.train.timeout)),
        ],
    )


def build_loader(
    config: Config,
    accelerator: Accelerator,
    shards: ShardSet | Mixture,
    bad_log: Path | None,
    *,
    twins: bool = True,
) -> Loader:
    """This rank's training loader. Raises ConfigError."""
    device = accelerator.device
    return Loader(
        shards,
        clips=config.clips,
        augment=config.augment,
        data=config.data,
        batch_size=config.train.batch_size,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        device=device,
        half=device.type == "cuda" and config.train.precision != "fp32",
        bad_log=bad_log,
        twins=twins,
    )


def build_model(config: Config, accelerator: Accelerator) -> tuple[nn.Module, Method, AcceleratedOptimizer]:
    """What `take_step` needs: the model as `accelerator.prepare` gives it, the method within, the optimizer; the same
    weights on every rank. Raises ConfigError."""
    method = build_method(config.method.name, config.method.options, untrained_backbone(config)).to(accelerator.device)
    try:
        method.check(max(2, config.clips.num_clips), config.train.batch_size)
    except ValueError as error:
        raise ConfigError(f"method: {error}") from None
    check_accumulation(method, config.train, accelerator.num_processes)
    _check_share(method, config, accelerator.num_processes)
    if config.train.channels_last:
        method = method.to(memory_format=torch.channels_last_3d)
    optimizer = build_optimizer(method, config.optim)
    if config.train.compile:
        for module in method.children():
            module.compile()  # in place: names in the state dict stay
    if config.train.checkpoint_activations and not checkpoint_blocks(method.backbone):
        raise ConfigError(f"train.checkpoint_activations: {config.backbone.name} has no blocks to compute again")
    model, prepared = prepare(accelerator, method, optimizer)
    return model, method, prepared


def _check_share(method: Method, config: Config, ranks: int) -> None:
    """Raise ConfigError where a batch norm of the heads would get a single video: of one value there is no spread."""
    if config.train.batch_size // (ranks * config.train.accumulate) != 1:
        return
    for name, module in method.named_modules():
        alone = not isinstance(module, SyncBatchNorm) or world_size(module.group) == 1
        if "backbone." not in name and isinstance(module, nn.modules.batchnorm._BatchNorm) and alone:
            raise ConfigError(
                f"train.batch_size: one video at a time on each rank, of which batch norm ({name}) has no statistics",
                hint='a larger train.batch_size, fewer ranks or train.accumulate, or method.batch_norm="sync"',
            )


def prepare(
    accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """Module and optimizer as the accelerator runs them."""
    with warnings.catch_warnings():  # newer torch has another word for broadcast_buffers, older torch only this one
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        model, prepared = accelerator.prepare(module, optimizer)
    # Of dimensions of one element, whose strides mean nothing; each rank would say so in the first backward.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
    return model, prepared


def take_step(
    accelerator: Accelerator,
    model: nn.Module,
    method: Method,
    optimizer: AcceleratedOptimizer,
    pixels: Tensor,
    moment: Moment,
    *,
    rate: float,
    accumulate: int = 1,
    clip: float | None = None,
    log: bool = False,
    enter: Callable[[str], None] = lambda stage: None,
) -> dict[str, Tensor]:
    """One optimizer step: its metrics, as tensors. The host queues the work and does not wait for the device.

    model, optimizer: as `accelerator.prepare` gave them; method: the model without what wraps it. pixels:
    [B, P, C, T, H, W]. rate: the learning rate. accumulate, clip: as in the configuration. log: the norm of the
    gradients is wanted, and each part's share of the loss. enter: called with a stage of the step where it begins.
    """
    losses: list[Tensor] = []

    def backward(loss: Tensor) -> None:
        losses.append(loss.detach())
        enter("backward")
        accelerator.backward(loss)
        enter("forward")

    enter("forward")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss, logs = run_step(
        model,
        method,
        pixels,
        moment,
        accumulate=accumulate,
        backward=backward,
        apart=lambda: accelerator.no_sync(model),
    )
    if log and (parts := len(losses) // accumulate) > 1:
        logs |= {f"loss_part{part}": torch.stack(losses[part::parts]).sum().float() for part in range(parts)}
    enter("optimizer")
    norm = torch.zeros((), device=loss.device)
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    if gradients:  # none where a method holds back its first updates
        if clip is not None:
            norm = accelerator.clip_grad_norm_(method.parameters(), clip)
        else:
            accelerator.unscale_gradients(optimizer)
            norm = nn.utils.get_total_norm(gradients)
        if accelerator.scaler is None:
            # An update of gradients that are not finite is skipped in the kernel: the host need not know, and all ranks
            # do the same, since their gradients are the same. In fp16 the scaler of the loss sees to it likewise.
            optimizer.optimizer.found_inf = (~torch.isfinite(norm)).float()
        optimizer.step()
    flag = torch.where(torch.isfinite(loss), OK, BAD_LOSS)
    if accelerator.scaler is None:
        flag = torch.where(torch.isfinite(norm), flag, flag.clamp(min=BAD_GRADIENT))
    return logs | {"loss": loss.float(), "lr": torch.tensor(rate), "grad_norm": norm, "flag": flag}


def run_length(config: Config, steps_per_epoch: int) -> tuple[int, float]:
    """(steps, epochs) of the whole run."""
    if config.train.steps is not None:
        return config.train.steps, config.train.steps / steps_per_epoch
    assert config.train.epochs is not None
    return max(1, round(config.train.epochs * steps_per_epoch)), config.train.epochs


@contextlib.contextmanager
def collected_by_hand() -> Iterator[None]:
    """No garbage collection at random moments of the hot loop: it would stall one rank, and so all of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
