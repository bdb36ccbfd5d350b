"""The contenders of loader_vs_peers.py: PyTorch DataLoaders over four decoders, written as a careful user would.

Each returns the same as rhofast: rho clips per video, float32 [P, C, T, H, W], chosen by the same temporal rule, with
the same augmentation for all frames of a clip, by torchvision v2. The frames that the clips of a video need are decoded
in one call or pass. Augmentation works on uint8 and crops first, so that color and blur only touch output pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from rhofast.config.schema import AugmentConfig, ClipConfig
from rhofast.data.format.dataset import open_folder
from rhofast.data.format.reader import Reader
from rhofast.data.sampling.clips import random_clips
from rhofast.data.types import Geometry

ENDLESS = 10_000_000
BLUR_WINDOW = 11  # 2 * ceil(2.5 * 2.0) + 1: rhofast's window at its largest sigma


@dataclass(frozen=True, kw_only=True)
class Source:
    """One entry of the data set: a video file, the same video in the shards, and its geometry."""

    path: str
    root: str
    sample: int
    num_frames: int
    fps: float
    width: int
    height: int


Decode = Callable[[Source, npt.NDArray[np.int64]], torch.Tensor]  # frame numbers i64[N] -> u8[N, 3, H, W]


def decode_torchcodec(source: Source, frames: npt.NDArray[np.int64]) -> torch.Tensor:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(source.path, seek_mode="approximate", num_ffmpeg_threads=1)
    return decoder.get_frames_at(indices=np.minimum(frames, len(decoder) - 1).tolist()).data


def decode_decord(source: Source, frames: npt.NDArray[np.int64]) -> torch.Tensor:
    import decord

    video = decord.VideoReader(source.path, num_threads=1)
    pixels = video.get_batch(np.minimum(frames, len(video) - 1).tolist()).asnumpy()
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def decode_pyav(source: Source, frames: npt.NDArray[np.int64]) -> torch.Tensor:
    """Decode with one seek before the first frame and one pass to the last; only wanted frames become RGB."""
    import av

    wanted = sorted(set(frames.tolist()))
    found: dict[int, npt.NDArray[np.uint8]] = {}
    with av.open(source.path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        rate, base, start = stream.average_rate, stream.time_base, stream.start_time or 0
        container.seek(start + int(wanted[0] / rate / base), stream=stream)
        for picture in container.decode(stream):
            number = round((picture.pts - start) * base * rate)
            while wanted and number >= wanted[0]:
                found[wanted.pop(0)] = picture.to_ndarray(format="rgb24")
            if not wanted:
                break
    last = max(found)  # repeated if the stream ends earlier than its header says
    pixels = np.stack([found[frame if frame in found else last] for frame in frames.tolist()])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


class JpegBytes:
    """Decodes the pictures of the shards with PIL; this shows the gain without DALI."""

    def __init__(self) -> None:
        self._reader: Reader | None = None

    def __call__(self, source: Source, frames: npt.NDArray[np.int64]) -> torch.Tensor:
        if self._reader is None:  # opened in the worker
            self._reader = Reader(open_folder(Path(source.root)))
        pictures = self._reader.read(source.sample, frames.astype(np.int32)).pictures
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(pictures[frame]))) for frame in frames.tolist()])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


class ClipDataset(Dataset[torch.Tensor]):
    """An endless data set of the videos: item i is video i % N in epoch i // N."""

    def __init__(self, sources: list[Source], decode: Decode, clips: ClipConfig, augment: AugmentConfig) -> None:
        self._sources, self._decode, self._clips = sources, decode, clips
        self._augment = v2.Compose(
            [
                v2.RandomResizedCrop(augment.size, scale=augment.area, ratio=augment.aspect, antialias=True),
                v2.RandomHorizontalFlip(augment.flip),
                v2.RandomApply(
                    [v2.ColorJitter(augment.brightness, augment.contrast, augment.saturation, augment.hue)],
                    p=augment.color,
                ),
                v2.RandomGrayscale(augment.gray),
                v2.RandomApply([v2.GaussianBlur(BLUR_WINDOW, augment.blur_sigma)], p=augment.blur),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(augment.mean, augment.std, inplace=True),
            ]
        )

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, item: int) -> torch.Tensor:
        epoch, number = divmod(item, len(self._sources))
        source = self._sources[number]
        geometry = Geometry(
            num_frames=np.array([source.num_frames], dtype=np.int32),
            fps=np.array([source.fps]),
            width=np.array([source.width], dtype=np.int32),
            height=np.array([source.height], dtype=np.int32),
            pixel_aspect=np.ones(1),
        )
        frames = random_clips(self._clips, geometry, np.array([number]), seed=0, epoch=epoch).frames[0]
        pixels = self._decode(source, frames.reshape(-1).astype(np.int64))
        views = [self._augment(clip) for clip in pixels.unflatten(0, frames.shape)]
        return torch.stack(views).transpose(1, 2)


def peer_loader(dataset: ClipDataset, *, batch_size: int, workers: int) -> DataLoader[torch.Tensor]:
    """Return a DataLoader whose workers use one thread each (its default) and live as long as the loader."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        prefetch_factor=2,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
