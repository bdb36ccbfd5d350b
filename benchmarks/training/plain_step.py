"""A straightforward training step, written from the papers; step_vs_plain.py compares rhofast's step with it.

It is eager PyTorch in its default layout (contiguous NCTHW), with loops over parameters for the moving average and for
LARS. Nothing is slowed down: losses are vectorized, the momentum network builds no graph, activations are in place,
gradients are set to None. Architecture, order of operations and arithmetic are those of the released configurations
with one process. `state_dict` names are rhofast's, so that both can start from the same weights.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """A residual block of Slow-R50."""

    def __init__(self, wide: int, inner: int, kernel: int, stride: int) -> None:
        super().__init__()
        out = 4 * inner
        self.conv_a = nn.Conv3d(wide, inner, (kernel, 1, 1), padding=(kernel // 2, 0, 0), bias=False)
        self.bn_a = nn.BatchNorm3d(inner)
        self.conv_b = nn.Conv3d(inner, inner, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1), bias=False)
        self.bn_b = nn.BatchNorm3d(inner)
        self.conv_c = nn.Conv3d(inner, out, 1, bias=False)
        self.bn_c = nn.BatchNorm3d(out)
        self.shortcut = self.shortcut_bn = None
        if wide != out or stride != 1:
            self.shortcut = nn.Conv3d(wide, out, 1, stride=(1, stride, stride), bias=False)
            self.shortcut_bn = nn.BatchNorm3d(out)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn_a(self.conv_a(x)))
        out = self.relu(self.bn_b(self.conv_b(out)))
        out = self.bn_c(self.conv_c(out))
        if self.shortcut is not None and self.shortcut_bn is not None:
            x = self.shortcut_bn(self.shortcut(x))
        out += x
        return self.relu(out)


class PlainSlow(nn.Module):
    """Slow-R50: [N, 3, T, H, W] -> [N, 32 * width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, width, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False)
        self.stem_bn = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        self.stages, wide = nn.ModuleList(), width
        for stage, (count, kernel) in enumerate(zip((3, 4, 6, 3), (1, 1, 3, 3), strict=True)):
            blocks = []
            for number in range(count):
                stride = 2 if number == 0 and stage > 0 else 1
                blocks.append(Bottleneck(wide, width * 2**stage, kernel, stride))
                wide = 4 * width * 2**stage
            self.stages.append(nn.Sequential(*blocks))
        self.num_features = wide

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.stem_bn(self.stem(x))))
        for stage in self.stages:
            x = stage(x)
        return x.mean(dim=(2, 3, 4))


class PlainViT(nn.Module):
    """A video transformer of timm's blocks: [N, 3, T, H, W] -> [N, width], for clips of one size.

    Args:
        width: Width of a token.
        depth: Number of blocks.
        heads: Number of attention heads.
        kernel: Frames, height and width of a patch.
        tokens: Number of tokens of a clip.
    """

    def __init__(self, width: int, depth: int, heads: int, kernel: tuple[int, int, int], tokens: int) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, width, kernel, stride=kernel)})
        norm = functools.partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm = norm(width)
        angle = torch.arange(tokens).double()[:, None] / 10000 ** (torch.arange(0, width, 2).double() / width)
        table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
        self.register_buffer("positions", table.float(), persistent=False)
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(dim=1)


def mlp(*widths: int, batch_norm: bool) -> nn.Sequential:
    """Return a perceptron with these widths."""
    layers: list[nn.Module] = []
    for number, (wide, out) in enumerate(itertools.pairwise(widths)):
        last = number == len(widths) - 2
        layers.append(nn.Linear(wide, out, bias=last or not batch_norm))
        if not last:
            layers += [nn.BatchNorm1d(out)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def normalize(x: Tensor) -> Tensor:
    """Scale vectors to length 1, in at least float32."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


class Plain(nn.Module):
    """A method: backbone and projector; depending on the method a momentum network, predictor, queue or prototypes."""

    def __init__(self, name: str, backbone: PlainSlow | PlainViT, *, hidden: int, queue: int) -> None:
        super().__init__()
        self.name = name
        self.backbone = backbone
        wide = backbone.num_features
        if name == "byol":
            self.projector = mlp(wide, hidden, 256, batch_norm=True)
            self.predictor = mlp(256, hidden, 256, batch_norm=True)
        else:
            self.projector = mlp(wide, hidden, hidden, 128, batch_norm=name == "swav")
        if name in ("byol", "moco"):
            self.momentum_backbone = copy.deepcopy(self.backbone).requires_grad_(requires_grad=False)
            self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(requires_grad=False)
        if name == "moco":
            self.register_buffer("queue", torch.empty(queue, 128))
            self.written = 0
        if name == "swav":
            self.prototypes = nn.Linear(128, 1000, bias=False)

    def losses(self, clips: list[Tensor], momentum: float) -> Iterator[Tensor]:
        """Yield the losses of a step; call backward on each before drawing the next."""
        if self.name in ("byol", "moco"):
            self.update_momentum_network(momentum)
            with torch.no_grad():
                keys = [normalize(self.momentum_projector(self.momentum_backbone(clip))) for clip in clips]
        if self.name == "byol":
            for number, clip in enumerate(clips):
                query = normalize(self.predictor(self.projector(self.backbone(clip))))
                others = [-(query * key).sum(dim=1).mean() for other, key in enumerate(keys) if other != number]
                yield torch.stack(others).mean() / 0.5
        elif self.name == "moco":
            for number, clip in enumerate(clips):
                query = normalize(self.projector(self.backbone(clip)))
                negative = query @ self.queue.T
                rows = [
                    torch.cat([(query * key).sum(dim=1, keepdim=True), negative], dim=1)
                    for other, key in enumerate(keys)
                    if other != number
                ]
                scores = torch.cat(rows) / 0.1
                yield F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))
            self.enqueue(torch.cat(keys))
        elif self.name == "simclr":
            for first, second in itertools.pairwise(clips):
                own = torch.cat([normalize(self.projector(self.backbone(clip))) for clip in (first, second)])
                scores = (own @ own.T / 0.1).fill_diagonal_(-torch.inf)
                videos = len(first)
                yield F.cross_entropy(scores, torch.arange(2 * videos, device=own.device).roll(videos))
        else:
            with torch.no_grad():
                self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
            scores = [self.prototypes(normalize(self.projector(self.backbone(clip)))) for clip in clips]
            losses = []
            for target in range(2):
                code = sinkhorn(scores[target].detach())
                losses += [
                    -(code * F.log_softmax(score / 0.1, dim=1)).sum(dim=1).mean()
                    for number, score in enumerate(scores)
                    if number != target
                ]
            yield torch.stack(losses).mean()

    @torch.no_grad()
    def update_momentum_network(self, momentum: float) -> None:
        """Update the moving averages, one parameter at a time."""
        for key, query in zip(self.momentum_backbone.parameters(), self.backbone.parameters(), strict=True):
            key.mul_(momentum).add_(query, alpha=1 - momentum)
        for key, query in zip(self.momentum_projector.parameters(), self.projector.parameters(), strict=True):
            key.mul_(momentum).add_(query, alpha=1 - momentum)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Write keys to the queue."""
        self.queue[self.written : self.written + len(keys)] = keys
        self.written = (self.written + len(keys)) % len(self.queue)


def sinkhorn(scores: Tensor) -> Tensor:
    """Return SwAV's codes, [B, K], from scores [B, K]."""
    codes = (scores / 0.05).exp()
    codes /= codes.sum()
    for _ in range(3):
        codes /= codes.sum(dim=0, keepdim=True) * codes.shape[1]
        codes /= codes.sum(dim=1, keepdim=True) * codes.shape[0]
    return (codes / codes.sum(dim=1, keepdim=True)).float()


class PlainLARS:
    """LARS with Nesterov momentum, one parameter at a time."""

    def __init__(self, model: nn.Module, *, decay: float, adapt: bool) -> None:
        norms = {
            id(p) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for p in m.parameters()
        }
        self.params = [(p, id(p) in norms) for p in model.parameters() if p.requires_grad]
        self.decay, self.adapt = decay, adapt
        self.buffers: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def step(self, rate: float, trust: float = 0.001, momentum: float = 0.9) -> None:
        for p, is_norm in self.params:
            if p.grad is None:
                continue
            gradient = p.grad
            if not self.adapt and not is_norm:
                gradient = gradient.add(p, alpha=self.decay)
            elif not is_norm and p.ndim > 1:
                p_norm, g_norm = p.norm(), gradient.norm()
                if p_norm != 0 and g_norm != 0:
                    scale = trust * p_norm / (g_norm + self.decay * p_norm + 1e-8)
                    gradient = gradient.add(p, alpha=self.decay).mul_(scale)
            if p not in self.buffers:
                self.buffers[p] = gradient.clone()
            else:
                self.buffers[p].mul_(momentum).add_(gradient)
            p.add_(gradient.add(self.buffers[p], alpha=momentum), alpha=-rate)

    def zero_grad(self) -> None:
        for p, _ in self.params:
            p.grad = None


class PlainAdamW:
    """torch's AdamW as one constructs it: one parameter at a time on a CPU; norms and biases are not decayed."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        plain = [p for name, p in trained if name.startswith("backbone.") and p.ndim == 1]
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                plain += [p for p in module.parameters() if p.requires_grad]
        known = {id(p) for p in plain}
        other = [p for _, p in trained if id(p) not in known]
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": other, "weight_decay": decay}]
        self.optimizer = torch.optim.AdamW(groups)

    def step(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


def plain_step(
    model: Plain,
    optimizer: PlainLARS | PlainAdamW,
    pixels: Tensor,
    *,
    rate: float,
    momentum: float,
    autocast: Callable[[], Any],
) -> Tensor:
    """Run one training step.

    Args:
        model: The method.
        optimizer: Its optimizer.
        pixels: The batch, [B, P, C, T, H, W].
        rate: Learning rate.
        momentum: Momentum of the moving average.
        autocast: Returns the context of the forward passes.

    Returns:
        The loss, summed over the backward passes.
    """
    optimizer.zero_grad()
    total = torch.zeros((), device=pixels.device)
    losses = model.losses([pixels[:, clip] for clip in range(pixels.shape[1])], momentum)
    while True:
        with autocast():
            loss = next(losses, None)
        if loss is None:
            break
        loss.backward()
        total += loss.detach()
    optimizer.step(rate)
    return total
