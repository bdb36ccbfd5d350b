"""A plain video transformer (ViT, arXiv 2010.11929, with tubelets as in ViViT and VideoMAE).

    clip [N, 3, T, H, W] --> patches of 2 x 16 x 16 pixels --> tokens [N, L, D], L = T/2 H/16 W/16
    tokens + positions --> blocks: x + attention(norm(x)), x + mlp(norm(x)) --> norm --> mean over tokens [N, D]

The names in the state dict are those of timm, VideoMAE and V-JEPA, which are the same. The network takes clips of any
size of which `patch` and `tubelet` are divisors.

With `keep` below 1, a fixed number of tokens, drawn for each clip, goes through the blocks in passes that make
gradients. Passes without gradients (momentum networks, evaluation) see all tokens. Tokens and dropped paths are drawn
from torch's generator, which training seeds for each step and rank, so that a resumed run draws the same.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from rhofast.config.section import Count, Positive, Probability, Section
from rhofast.models.backbones.clip_limits import ClipLimits
from rhofast.models.backbones.positions import (
    Angles,
    Grid,
    Pairs,
    resized_frames,
    resized_table,
    rotary_angles,
    sincos_1d,
    sincos_3d,
)
from rhofast.models.backbones.vit_layers import Attention, Block, PatchEmbed

# Width, number of blocks and number of heads of each size.
SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "h": (1280, 32, 16)}
VIT_TRAINING_OPTIONS = ("drop_path", "keep", "freeze_patches", "resize_positions")
_MIN_ROTARY_HEAD = 6  # entries: two for each of the three axes


class ViTConfig(Section):
    """Options of a video transformer."""

    size: Literal["s", "b", "l", "h"] = "b"
    """Size: "s" (384 wide, 12 blocks, 6 heads), "b" (768, 12, 12), "l" (1024, 24, 16) or "h" (1280, 32, 16)."""

    width: Count | None = None
    """Width of a token. None: that of `size`."""

    depth: Count | None = None
    """Number of blocks. None: that of `size`."""

    heads: Count | None = None
    """Number of attention heads. None: that of `size`."""

    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    """Hidden width of a block's MLP divided by the width of a token."""

    patch: Count = 16
    """Height and width of a patch in pixels."""

    tubelet: Count = 2
    """Number of frames of a patch."""

    position: Literal["sincos1d", "sincos3d", "rope", "learned"] = "sincos1d"
    """Positions of tokens: sines and cosines of the token's number ("sincos1d", VideoMAE) or of its place along each
    axis ("sincos3d"), rotations of queries and keys ("rope", V-JEPA 2), or a trained table of one frame ("learned",
    image ViTs)."""

    rope_pairs: Pairs = "adjacent"
    """Entries of a head that "rope" rotates by the same angle: "adjacent" ones (V-JEPA 2.1), or "tiled" (V-JEPA 2,
    whose code gives the two entries of a pair different angles)."""

    rope_side: Annotated[int, Field(ge=2)] | None = None
    """"rope" stretches the places along height and width to 0 ... `rope_side` - 1, whatever the size of a clip (V-JEPA
    2.1: 16). None: places are counted."""

    position_side: Count = 14
    """Number of patches per side of the table of "learned", or with `resize_positions` of "sincos1d". It is resized for
    clips of another size."""

    resize_positions: bool = False
    """Whether "sincos1d" is the table of `position_side` x `position_side` patches, resized for clips of another size.
    False: the patches of each size are numbered anew, so that a place has other numbers in frames of another width.
    Detection, which tests frames of all shapes, needs true."""

    pool: Literal["mean", "cls"] = "mean"
    """Features of a clip: the mean of its tokens, or its class token."""

    class_token: bool | None = None
    """Whether there is a class token. None: only with pool="cls"."""

    norm: Literal["tokens", "pooled", "none"] = "tokens"
    """Where the last normalization is: on tokens, on the pooled features (VideoMAE's fine-tuned networks), or
    nowhere."""

    norm_eps: Positive = 1e-6
    """Epsilon of the normalizations."""

    pooled_norm_eps: Positive | None = None
    """Epsilon of the normalization of pooled features; None for `norm_eps`. In transformers' VideoMAE they differ."""

    modality_token: bool = False
    """Whether a trained vector that marks videos is added to all tokens (V-JEPA 2.1)."""

    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of clips for which the last block's branches are left out in training; it grows linearly from 0 in the
    first block."""

    keep: Annotated[Probability, Field(gt=0)] = 1.0
    """Share of tokens that go through the blocks in passes that make gradients: a fixed number, drawn for each clip."""

    freeze_patches: bool = False
    """Whether the projection of patches keeps its initial weights, which stabilizes contrastive training (MoCo v3)."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Width, number of blocks and number of heads."""
        width, depth, heads = SIZES[self.size]
        return self.width or width, self.depth or depth, self.heads or heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of a block's MLP. A ratio such as 48/11 is rounded to the nearest width."""
        return round(self.sizes[0] * self.mlp_ratio)

    @model_validator(mode="after")
    def _check(self) -> ViTConfig:
        width, _, heads = self.sizes
        if width % heads or width % 2:
            raise ValueError(f"backbone.width={width} must be even and a multiple of backbone.heads={heads}.")
        head = width // heads
        if self.position == "rope" and (head < _MIN_ROTARY_HEAD or head % 2):
            raise ValueError(
                f"backbone.position=rope needs heads of an even width of at least {_MIN_ROTARY_HEAD} (got {head}: "
                f"backbone.width={width}, backbone.heads={heads})."
            )
        if self.pool == "cls" and self.class_token is False:
            raise ValueError("backbone.pool=cls needs backbone.class_token=true.")
        return self


class ViT(nn.Module):
    """A video transformer: [N, 3, T, H, W] normalized pixels -> [N, num_features].

    Args:
        options: options of the network.
    """

    def __init__(self, options: ViTConfig) -> None:
        super().__init__()
        self.options = options
        width, depth, heads = options.sizes
        self.num_features, self.map_stride = width, options.patch
        self.limits = ClipLimits(
            name="vit",
            num_frames=options.tubelet,
            size=options.patch,
            frame_multiple=options.tubelet,
            size_multiple=options.patch,
        )
        self.patch_embed = PatchEmbed(width, (options.tubelet, options.patch, options.patch))
        has_class_token = options.pool == "cls" if options.class_token is None else options.class_token
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if has_class_token else None
        learned = options.position == "learned"
        self.pos_embed = nn.Parameter(torch.empty(1, options.position_side**2, width)) if learned else None
        self.video_mod_embed = nn.Parameter(torch.empty(1, 1, width)) if options.modality_token else None
        rates = [options.drop_path * number / max(1, depth - 1) for number in range(depth)]
        hidden, eps = options.mlp_width, options.norm_eps
        self.blocks = nn.ModuleList(Block(width, heads, hidden=hidden, eps=eps, drop_path=rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=eps) if options.norm == "tokens" else None
        pooled_eps = options.pooled_norm_eps or eps
        self.fc_norm = nn.LayerNorm(width, eps=pooled_eps) if options.norm == "pooled" else None
        self._tables: dict[tuple[Grid, torch.device], Tensor | Angles] = {}
        self._initialize()
        if options.freeze_patches:
            self.patch_embed.requires_grad_(requires_grad=False)

    def no_weight_decay(self) -> set[str]:
        """Return the names of positions, class token, normalizations and biases, which the optimizer does not decay."""
        tokens = ("cls_token", "pos_embed", "video_mod_embed")
        return {name for name, value in self.named_parameters() if value.ndim == 1 or name in tokens}

    def layers(self) -> list[tuple[str, ...]]:
        """Return the names of what makes tokens, then those of each block."""
        tokens = ("cls_token", "pos_embed", "video_mod_embed")
        embedding = ("patch_embed", *(name for name in tokens if getattr(self, name) is not None))
        return [embedding, *((f"blocks.{number}",) for number in range(len(self.blocks)))]

    def tokens(self, x: Tensor) -> Tensor:
        """Return the tokens after the last block, without the class token: [N, 3, T, H, W] -> [N, L, D]."""
        return self._encode(x)[1]

    def last_map(self, x: Tensor) -> Tensor:
        """Return the tokens at their places: [N, 3, T, H, W] -> [N, D, T', H', W'].

        A normalization of pooled features (norm="pooled") is applied to each place, as there is nothing pooled yet.

        Raises:
            ConfigError: Clips of this size are not accepted.
        """
        tokens = self._encode(x)[1]
        tokens = tokens if self.fc_norm is None else self.fc_norm(tokens)
        maps: Tensor = tokens.transpose(1, 2).unflatten(2, self._grid(x))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of clips: [N, 3, T, H, W] -> [N, num_features]."""
        class_token, tokens = self._encode(x)
        features = class_token if self.options.pool == "cls" and class_token is not None else tokens.mean(dim=1)
        return features if self.fc_norm is None else self.fc_norm(features)

    def _encode(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the class token [N, D], if there is one, and the other tokens [N, L, D] after the last block."""
        self.limits.check(*x.shape[2:])
        grid = self._grid(x)
        kept = self._draw_kept(len(x), grid, x.device)
        tokens, angles = self._placed(self.patch_embed(x, kept), grid, kept)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(x), -1, -1).to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens, angles)
        if self.norm is not None:
            tokens = self.norm(tokens)
        return (None, tokens) if self.cls_token is None else (tokens[:, 0], tokens[:, 1:])

    def _grid(self, x: Tensor) -> Grid:
        """Return the tokens of clips [N, 3, T, H, W] along time, height and width."""
        options = self.options
        return x.shape[2] // options.tubelet, x.shape[3] // options.patch, x.shape[4] // options.patch

    def _draw_kept(self, clips: int, grid: Grid, device: torch.device) -> Tensor | None:
        """Return the numbers of the tokens that each clip keeps, i64[N, K] in rising order; None: all."""
        count = grid[0] * grid[1] * grid[2]
        kept = max(1, round(self.options.keep * count))
        if kept == count or not (self.training and torch.is_grad_enabled()):
            return None
        return torch.rand(clips, count, device=device).topk(kept, dim=1, sorted=False).indices.sort(dim=1).values

    def _placed(self, tokens: Tensor, grid: Grid, kept: Tensor | None) -> tuple[Tensor, Angles | None]:
        """Return tokens with positions, and the angles of rotations.

        Args:
            tokens: [N, K, D].
            grid: tokens of a whole clip along time, height and width.
            kept: numbers of the tokens, i64[N, K]; None: all.

        Returns:
            Tokens [N, K, D], and cosines and sines [K, head] or [N, 1, K, head] for `position="rope"`, None otherwise.
        """
        if self.video_mod_embed is not None:
            tokens = tokens + self.video_mod_embed
        if self.pos_embed is not None:
            table: Tensor | Angles = resized_table(self.pos_embed, grid)
        else:
            table = self._table(grid, tokens.device)
        if isinstance(table, Tensor):
            return tokens + (table if kept is None else table[kept]).to(self.patch_embed.proj.weight.dtype), None
        cosines, sines = ((one if kept is None else one[kept][:, None]).to(tokens.dtype) for one in table)
        if self.cls_token is not None:  # it has no place, and is not rotated
            cosines, sines = F.pad(cosines, (0, 0, 1, 0), value=1.0), F.pad(sines, (0, 0, 1, 0))
        return tokens, (cosines, sines)

    def _table(self, grid: Grid, device: torch.device) -> Tensor | Angles:
        """Return the fixed table of a grid, [L, D], or two tables of angles, [L, head]; those of one grid are kept."""
        if torch.compiler.is_compiling():  # it becomes part of the graph
            return self._make_table(grid, device)
        if (grid, device) not in self._tables:
            self._tables = {(grid, device): self._make_table(grid, device)}
        return self._tables[grid, device]

    def _make_table(self, grid: Grid, device: torch.device) -> Tensor | Angles:
        options = self.options
        width, _, heads = options.sizes
        if options.position == "rope":
            return rotary_angles(grid, width // heads, options.rope_pairs, options.rope_side, device)
        if options.position == "sincos1d" and options.resize_positions:
            side = options.position_side
            return resized_frames(sincos_1d((grid[0], side, side), width, device), side, grid)
        make = sincos_1d if options.position == "sincos1d" else sincos_3d
        return make(grid, width, device)

    def _initialize(self) -> None:
        """Set Xavier's uniform weights (queries, keys and values as three layers), biases 0, and small tokens."""
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                if isinstance(module, nn.Linear | nn.Conv3d) and module.bias is not None:
                    nn.init.zeros_(module.bias)
                if isinstance(module, Attention):
                    for part in module.qkv.weight.chunk(3):
                        nn.init.xavier_uniform_(part)
            weight = self.patch_embed.proj.weight
            nn.init.xavier_uniform_(weight.view(len(weight), -1))
            for token in (self.cls_token, self.pos_embed, self.video_mod_embed):
                if token is not None:
                    nn.init.normal_(token, std=0.02)
