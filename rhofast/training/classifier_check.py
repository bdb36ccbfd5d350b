"""What settings cannot go together where a classifier is trained; checked before anything is built."""

from __future__ import annotations

from rhofast.config.schema import Config
from rhofast.errors import ConfigError


def check_classifier(config: Config, *, trains_backbone: bool) -> None:
    """Refuse settings that a classifier's training cannot follow.

    Args:
        config: The configuration.
        trains_backbone: Whether the weights of the backbone are trained.

    Raises:
        ConfigError: One setting, with a remedy.
    """
    if config.train.accumulate != 1:
        raise ConfigError(
            f"train.accumulate={config.train.accumulate}: a classifier is trained with 1",
            hint="set train.accumulate=1, with a smaller train.batch_size for less memory",
        )
    decay = config.optim.layer_decay
    if decay != 1 and not trains_backbone:
        raise ConfigError(
            f"optim.layer_decay={decay:g}: a linear probe trains the classifier alone, which has the whole rate",
            hint="set optim.layer_decay=1, or use rhofast eval finetune",
        )
