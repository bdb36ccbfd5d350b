"""Features of every sample of a shard set, through the same data path as training.

Each rank extracts its own part; the parts are joined in sample order on every rank. No sample is padded, repeated or
replaced: one that cannot be read is missing from the result, and named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from rhofast.config import AugmentSection, ClipSection, DataSection
from rhofast.data.index import ShardSet
from rhofast.data.loader import TestLoader
from rhofast.errors import SampleError, ShardFormatError

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """values f32[N, V, D] of V views; sample i64[N] ascending; label i64[N], -100 for none; bad: what was left out."""

    values: npt.NDArray[np.float32]
    sample: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    bad: list[SampleError]


def part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one part of a larger job, told as progress of the whole: `before` items were done before it."""
    return None if progress is None else lambda done, _: progress(before + done, total)


def extract_features(
    backbone: nn.Module,
    shards: ShardSet,
    *,
    clips: ClipSection,
    augment: AugmentSection,
    data: DataSection,
    views: int,
    batch_size: int,
    progress: Progress | None = None,
) -> Features:
    """Features of all samples: `views` uniform center clips each, the backbone in evaluation mode, no gradient.

    backbone: [N, C, T, H, W] -> [N, D], on the device it should run on; its mode is put back afterwards. batch_size:
    videos a forward on each rank. progress: called with (samples done, samples in all) of this rank. Raises
    ShardFormatError if not one sample can be read.
    """
    state = PartialState()
    device = next(backbone.parameters()).device
    was_training = backbone.training
    backbone.eval()
    values, samples, labels = [], [], []
    share = len(shards) // state.num_processes
    try:
        with (
            TestLoader(
                shards,
                clips=clips,
                augment=augment,
                data=data,
                batch_size=batch_size,
                views=views,
                rank=state.process_index,
                world_size=state.num_processes,
                device=device,
            ) as loader,
            torch.inference_mode(),
        ):
            done = 0
            for batch in loader:
                out = backbone(batch.pixels.flatten(0, 1)).float()
                values.append(out.view(len(batch.sample), views, -1).cpu().numpy())
                samples.append(batch.sample.cpu().numpy())
                labels.append(batch.label.cpu().numpy())
                done += len(batch.sample)
                if progress is not None:
                    progress(done, max(share, done))
    finally:
        backbone.train(was_training)
    parts = gather_object([(values, samples, labels, loader.bad)])
    bad = [error for part in parts for error in part[3]]
    if not any(part[0] for part in parts):
        raise ShardFormatError(f"{shards.root}: not one sample could be read; the first: {bad[0]}")
    return Features(
        values=np.concatenate([array for part in parts for array in part[0]]),
        sample=np.concatenate([array for part in parts for array in part[1]]),
        label=np.concatenate([array for part in parts for array in part[2]]),
        bad=bad,
    )
