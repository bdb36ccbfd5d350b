"""The reference implementation's numbers, where they are present."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHARED
from safetensors.torch import load_file

from rhofast.backbones.slow import Slow
from rhofast.export import slow_keys

VECTORS = SHARED / "vectors"
needs_vectors = pytest.mark.skipif(not VECTORS.exists(), reason="the reference vectors are not here")


def tensors(name: str, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    loaded = load_file(VECTORS / f"{name}.safetensors")
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in loaded.items()}


def numbers(name: str) -> Any:
    return json.loads(Path(VECTORS / f"{name}.json").read_text())


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Entries under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def official_slow(backbone: Slow, prefix: str) -> dict[str, str]:
    """Official name with a prefix -> name in the backbone."""
    return {f"{prefix}{official}": here for official, here in slow_keys(backbone).items()}
