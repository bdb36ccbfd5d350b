"""An example of docs/examples, run with a record of what its network gets.

As a program, for launchers: `recorded_example.py OUT EXAMPLE ARGUMENTS...` writes the record of rank N to OUT/N.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tests.helpers.shards import ROOT

FOLDER = ROOT / "docs" / "examples"


@dataclass(frozen=True)
class Seen:
    """What the network got in a step: the number and a digest of the pixels of each video; and its own weights."""

    samples: list[int]
    pixels: list[str]
    weights: str


class KilledError(Exception):
    """The end of a run that was killed."""


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()[:16]


def record(name: str, *arguments: object, seed: int = 0, steps: int | None = None) -> list[Seen]:
    """Run an example in the current folder and return what its network got.

    Args:
        name: Name of the file, without .py.
        arguments: Its arguments.
        seed: Seed of the network's first weights.
        steps: Number of steps after which the run is killed; None for never.
    """
    sys.path.insert(0, str(FOLDER))
    import contrast

    steps_seen: list[Seen] = []
    forward: Callable[..., Any] = contrast.Contrast.forward

    def recording(self: torch.nn.Module, **views: torch.Tensor) -> Any:
        if len(steps_seen) == steps:
            raise KilledError
        pixels = [digest(video) for video in views["pixels"]]
        steps_seen.append(Seen(views["sample"].tolist(), pixels, digest(next(self.parameters()))))
        return forward(self, **views)

    contrast.Contrast.forward = recording
    sys.argv = [name, *map(str, arguments)]
    torch.manual_seed(seed)
    try:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    except KilledError:
        pass
    finally:
        contrast.Contrast.forward = forward
        sys.path.remove(str(FOLDER))
    return steps_seen


if __name__ == "__main__":
    out, example, *words = sys.argv[1:]
    steps_of_rank = record(example, *words)
    (Path(out) / f"{os.environ['RANK']}.json").write_text(json.dumps([asdict(step) for step in steps_of_rank]))
