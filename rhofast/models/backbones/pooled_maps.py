"""Networks whose features are the mean of their last map."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class PooledMaps(nn.Module):
    """Base class of convolutional networks: [N, 3, T, H, W] normalized pixels -> [N, num_features]."""

    @abstractmethod
    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """Return the maps of the network, each [N, C, T', H', W'], the last one with num_features channels.

        Args:
            x: Clips, [N, 3, T, H, W].
        """

    map_stride: int
    """Pixels along height and width per place of the last map."""

    def last_map(self, x: Tensor) -> Tensor:
        """Return the last map: [N, 3, T, H, W] -> [N, num_features, T', H', W']."""
        return self.feature_maps(x)[-1]

    def tokens(self, x: Tensor) -> Tensor:
        """Return the places of the last map: [N, 3, T, H, W] -> [N, T' H' W', num_features]."""
        return self.last_map(x).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of clips: [N, 3, T, H, W] -> [N, num_features]."""
        features: Tensor = self.last_map(x).mean(dim=(2, 3, 4))
        return features


def block_names(stages: nn.ModuleList) -> list[tuple[str, ...]]:
    """Return the name of each block of the stages `stages`, a layer each, from input to output."""
    blocks = [(number, len(stage)) for number, stage in enumerate(stages) if isinstance(stage, nn.Sequential)]
    return [(f"stages.{number}.{block}",) for number, count in blocks for block in range(count)]
