"""The layers of a video transformer: projection of patches, attention, MLP, and the block of both."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhofast.models.backbones.positions import Angles, rotate


class PatchEmbed(nn.Module):
    """The projection of patches to tokens: a convolution whose stride is its kernel, computed as a matrix product.

    Args:
        width: width of a token.
        kernel: frames, height and width of a patch.
    """

    def __init__(self, width: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel = kernel
        self.proj = nn.Conv3d(3, width, kernel, stride=kernel)

    def forward(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """Return the tokens of a clip, all or some.

        Args:
            x: clips, [N, 3, T, H, W].
            kept: numbers of the tokens to make, i64[N, K]; None: all of them.

        Returns:
            [N, L, D] or [N, K, D].
        """
        frames, height, width = self.kernel
        n, c, t, h, w = x.shape
        split = x.view(n, c, t // frames, frames, h // height, height, w // width, width)
        patches = split.permute(0, 2, 4, 6, 3, 5, 7, 1)  # [N, T', H', W', frames, height, width, 3]: as pixels lie
        if kept is None:
            chosen = patches.flatten(4).flatten(1, 3)
        else:
            _, rows, columns = patches.shape[1:4]
            clip = torch.arange(len(x), device=x.device)[:, None]
            place = (kept // (rows * columns), kept // columns % rows, kept % columns)
            chosen = patches[clip, *place].flatten(2)
        return F.linear(chosen, self.proj.weight.permute(0, 2, 3, 4, 1).flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Self-attention over tokens.

    Args:
        width: width of a token.
        heads: number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Angles | None) -> Tensor:
        """Map tokens [N, L, D] to [N, L, D]; with `angles`, queries and keys are rotated."""
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # so their gradients are copied once
        q, k, v = (part.transpose(1, 2) for part in parts)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two linear layers with GELU between them.

    Args:
        width: width of a token.
        hidden: hidden width.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [N, L, D] to [N, L, D]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """A transformer block with the normalizations before attention and MLP.

    Args:
        width: width of a token.
        heads: number of attention heads.
        hidden: hidden width of the MLP.
        eps: epsilon of the normalizations.
        drop_path: share of clips for which a branch is left out in training.
    """

    def __init__(self, width: int, heads: int, *, hidden: int, eps: float, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden)

    def forward(self, x: Tensor, angles: Angles | None) -> Tensor:
        """Map tokens [N, L, D] to [N, L, D]."""
        x = x + self._dropped(self.attn(self.norm1(x), angles))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        """Return a branch with 0 for some clips in training, and more for the others, so that its mean stays."""
        if not self.training or self.drop_path == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * (kept / (1 - self.drop_path)).to(branch.dtype)
