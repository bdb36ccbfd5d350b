"""Attentive probes: classifiers that attend to the tokens of a frozen backbone (V-JEPA, arXiv 2404.08471, section 4.2).

    clips [N, 3, T, H, W] --frozen backbone.tokens--> [N, L, D] --J clips of a video joined--> [N / J, J * L, D]
        each probe: 3 blocks of self-attention --> one learned query attends to all tokens, MLP --> [N, D] --> classes

Many probes read the same tokens at once, since the backbone costs more than all of them. They share no weight, and all
begin with the same ones, so that each is what it would be alone. Joined clips have no order: nothing is added to their
tokens, which hold the places within a clip alone.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rhofast.errors import ConfigError
from rhofast.evaluation.classifier import GlobalDropout
from rhofast.models.backbones.vit_layers import MLP, Block

_BLOCKS, _MLP_RATIO, _EPS, _STD = 3, 4, 1e-6, 0.02


class AttentiveProbe(nn.Module):
    """One probe: tokens [N, L, D] -> logits [N, classes]."""

    def __init__(self, width: int, heads: int, num_classes: int, dropout: GlobalDropout) -> None:
        """Build the probe with random weights.

        Args:
            width: Width D of a token.
            heads: Number of attention heads, which divides the width.
            num_classes: Number of classes.
            dropout: Applied to the input of the classifier.
        """
        super().__init__()
        hidden = _MLP_RATIO * width
        self.heads = heads
        self.blocks = nn.ModuleList(Block(width, heads, hidden=hidden, eps=_EPS, drop_path=0.0) for _ in range(_BLOCKS))
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = MLP(width, hidden)
        self.head = nn.Linear(width, num_classes)
        self._dropout = [dropout]  # in a list, since it belongs to all probes and has no weights
        self._initialize()

    def no_weight_decay(self) -> set[str]:
        """Return the names of the query, normalizations and biases, which the optimizer does not decay."""
        return {name for name, value in self.named_parameters() if value.ndim == 1 or name == "query"}

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [N, classes] of tokens [N, L, D]."""
        for block in self.blocks:
            tokens = block(tokens, None)
        keys, values = self.kv(self.norm1(tokens)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.q(self.query).unflatten(-1, (self.heads, -1)).transpose(1, 2).expand(len(tokens), -1, -1, -1)
        found = F.scaled_dot_product_attention(query.to(keys.dtype), keys, values).transpose(1, 2).flatten(2)
        pooled = self.query + self.proj(found)
        pooled = pooled + self.mlp(self.norm2(pooled))
        logits: Tensor = self.head(self._dropout[0](pooled[:, 0]))
        return logits

    def _initialize(self) -> None:
        """Set normal weights, biases 0, and smaller weights at the ends of deeper branches, as V-JEPA does."""
        nn.init.normal_(self.query, std=_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD)
                nn.init.zeros_(module.bias)
        for number, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            for last in (block.attn.proj, block.mlp.fc2):
                last.weight.data.div_(math.sqrt(2 * number))
        self.mlp.fc2.weight.data.div_(math.sqrt(2 * (_BLOCKS + 1)))


class AttentiveProbes(nn.Module):
    """A frozen backbone with several probes: clips [N, 3, T, H, W] -> logits [N / J, probes, classes] in training.

    J clips that follow each other are of one video, and are read together. In evaluation mode it returns scores, by the
    softmax or, for several labels per video, by the sigmoid: of the chosen probe [N / J, classes], or of all,
    [N / J, probes * classes], with 0 in place of what is not finite: a probe whose rate was too high must not end the
    others.
    """

    def __init__(
        self,
        backbone: nn.Module,
        name: str,
        num_classes: int,
        *,
        count: int,
        heads: int,
        dropout: float,
        joined: int = 1,
        at_once: int | None = None,
        recompute: bool = False,
        several: bool = False,
    ) -> None:
        """Build equal probes.

        Args:
            backbone: A network with `tokens`.
            name: Its name, for errors.
            num_classes: Number of classes.
            count: Number of probes.
            heads: Number of attention heads of a probe.
            dropout: Probability in [0, 1) that a pooled feature is dropped.
            joined: J, the number of clips that are read together.
            at_once: Most clips that go through the backbone at once. None: all.
            recompute: Whether probes keep their input alone for the backward pass, and compute the rest again. Without
                it, the activations of all probes for all tokens are in memory together.
            several: Whether a video may have several classes: the scores are sigmoids, not a softmax.

        Raises:
            ConfigError: If the backbone gives no tokens, or their width cannot be divided among the heads.
        """
        super().__init__()
        if not callable(getattr(backbone, "tokens", None)):
            raise ConfigError(
                f"backbone.name={name}: it gives no tokens for an attentive probe",
                hint="it needs a method tokens(x) -> [N, L, num_features]; rhofast eval linear needs none",
            )
        width: Any = backbone.num_features
        if width % heads:
            fitting = max(one for one in range(1, heads) if width % one == 0)
            raise ConfigError(
                f"eval.probe_heads={heads} does not divide the {width} numbers of a token of backbone.name={name}",
                hint=f"--set eval.probe_heads={fitting}",
            )
        self.backbone = backbone.requires_grad_(False)
        self.dropout = GlobalDropout(dropout)
        first = AttentiveProbe(width, heads, num_classes, self.dropout)
        self.probes = nn.ModuleList([first, *(self._copy(first) for _ in range(count - 1))])
        self.chosen: int | None = None
        self._name, self._joined, self._at_once, self._recompute = name, joined, at_once, recompute
        self._several = several

    def _logits(self, probe: nn.Module, tokens: Tensor) -> Tensor:
        logits: Tensor = checkpoint(probe, tokens, use_reentrant=False) if self._recompute else probe(tokens)
        return logits

    def _copy(self, probe: AttentiveProbe) -> AttentiveProbe:
        return copy.deepcopy(probe, {id(self.dropout): self.dropout})

    def train(self, mode: bool = True) -> AttentiveProbes:
        """Set the training mode of the probes; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (training) or scores (evaluation)."""
        with torch.no_grad():
            parts = torch.split(pixels, self._at_once or len(pixels))
            tokens = torch.cat([self.backbone.tokens(part) for part in parts])  # type: ignore[operator]
        if tokens.ndim != 3 or tokens.shape[2] != self.backbone.num_features:
            raise ConfigError(
                f"backbone.name={self._name}: its tokens are {list(tokens.shape)}, not [{len(pixels)}, L, "
                f"{self.backbone.num_features}]"
            )
        tokens = tokens.reshape(-1, self._joined * tokens.shape[1], tokens.shape[2])
        if self.training:
            return torch.stack([self._logits(probe, tokens) for probe in self.probes], dim=1)
        if self.chosen is not None:
            return self._scores(self.probes[self.chosen](tokens))
        every = torch.stack([probe(tokens) for probe in self.probes], dim=1)
        return self._scores(every).nan_to_num(0.0).flatten(1)

    def _scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self._several else logits.softmax(dim=-1)
