"""What RandAugment, random erasing and mixing cost per clip, beside decoding, and beside timm's operations on pictures.

    python -m benchmarks.data_loading.strong_augment VIDEOS... [--clips 16] [--out benchmarks/results]

All contenders get the same clips of 16 frames, and the same plan. benchmarks/README.md explains what is measured and
what is not.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from benchmarks.machine import facts_line, facts_of_the_machine, find_videos, write_table
from rhofast.config.schema import AugmentConfig
from rhofast.data.decode.mixing import erase_boxes, mix_neighbors
from rhofast.data.decode.pipeline import DecodePipeline
from rhofast.data.decode.rand_augment import apply_ops
from rhofast.data.image_ops import ImageOp
from rhofast.data.sampling.augment import random_augment
from rhofast.data.types import AugmentPlan, ClipPlan, Geometry, Sample

FRAMES, STRIDE, SHORT_SIDE = 16, 4, 256
PLAIN = AugmentConfig(crop="area", area=(0.08, 1.0), color=0.0, gray=0.0, blur=0.0)
KIT = PLAIN.model_copy(update={"rand_ops": 4, "erase": 0.25, "mixup": 0.8, "cutmix": 1.0})  # VideoMAE's
COLUMNS = ("what", "CPU ms per clip, median", "lowest to highest", "share of decoding, median")
TIMM = {
    ImageOp.AUTO_CONTRAST: "AutoContrast",
    ImageOp.EQUALIZE: "Equalize",
    ImageOp.INVERT: "Invert",
    ImageOp.ROTATE: "Rotate",
    ImageOp.POSTERIZE: "Posterize",
    ImageOp.SOLARIZE: "Solarize",
    ImageOp.SOLARIZE_ADD: "SolarizeAdd",
    ImageOp.COLOR: "Color",
    ImageOp.CONTRAST: "Contrast",
    ImageOp.BRIGHTNESS: "Brightness",
    ImageOp.SHARPNESS: "Sharpness",
    ImageOp.SHEAR_X: "ShearX",
    ImageOp.SHEAR_Y: "ShearY",
    ImageOp.TRANSLATE_X: "TranslateXRel",
    ImageOp.TRANSLATE_Y: "TranslateYRel",
}


def read_clip(path: Path) -> dict[int, np.ndarray]:
    """Return the first frames of a video as JPEG files of 256 lines, by number."""
    pictures: dict[int, np.ndarray] = {}
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % STRIDE == 0:
                image = frame.to_image()
                shrunk = SHORT_SIDE / min(image.size)
                sink = io.BytesIO()
                image.resize([round(side * shrunk) for side in image.size]).save(sink, "JPEG", quality=90)
                pictures[len(pictures)] = np.frombuffer(sink.getvalue(), dtype=np.uint8)
            if len(pictures) == FRAMES:
                break
    return pictures


def size_of(sample: Sample) -> tuple[int, int]:
    with Image.open(io.BytesIO(sample.pictures[0].tobytes())) as image:
        return image.size


def plan_of(samples: list[Sample], config: AugmentConfig) -> AugmentPlan:
    """Draw the augmentation of a batch."""
    width, height = np.array([size_of(sample) for sample in samples], dtype=np.int32).T
    count = len(samples)
    fps = np.full(count, 30.0)
    geometry = Geometry(
        num_frames=np.full(count, FRAMES, dtype=np.int32), fps=fps, width=width, height=height, pixel_aspect=fps / 30
    )
    return random_augment(config, geometry, np.arange(count), np.full((count, 1, 3), 128.0), seed=0, epoch=0)


def by_timm(pictures: list[list[Image.Image]], plan: AugmentPlan) -> None:
    """Apply a plan's operations to Pillow's pictures, frame by frame, as VideoMAE's code does."""
    from timm.data.auto_augment import NAME_TO_OP

    assert plan.ops is not None and plan.amounts is not None
    for frames, ops, amounts in zip(pictures, plan.ops[:, 0], plan.amounts[:, 0], strict=True):
        for frame in frames:
            image = frame
            for op, amount in zip(ops.tolist(), amounts.tolist(), strict=True):
                if op:
                    whole = op in (ImageOp.POSTERIZE, ImageOp.SOLARIZE, ImageOp.SOLARIZE_ADD)
                    given = () if op <= ImageOp.INVERT else (int(amount) if whole else amount,)
                    options = {"resample": Image.Resampling.BILINEAR, "fillcolor": (128, 128, 128)}
                    image = NAME_TO_OP[TIMM[ImageOp(op)]](image, *given, **options)


def contenders(samples: list[Sample]) -> dict[str, Callable[[], Any]]:
    """Return what is measured, by name; each call does the work for all clips."""
    plan = plan_of(samples, KIT)
    clips = ClipPlan(frames=np.tile(np.arange(FRAMES, dtype=np.int32), (len(samples), 1, 1)))
    pipeline = DecodePipeline(PLAIN, max_pictures=clips.frames.size, color=False, blur=False, threads=1)
    pixels = pipeline.decode(samples, clips, plan).clone(memory_format=torch.preserve_format)
    mean, std = (np.array(values, dtype=np.float32) for values in (PLAIN.mean, PLAIN.std))
    levels = ((pixels * 0.225 + 0.45).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 5, 2)
    pictures = [[Image.fromarray(frame) for frame in clip[0].numpy()] for clip in levels]
    assert plan.ops is not None and plan.amounts is not None and plan.erase is not None
    assert plan.share is not None and plan.cut is not None
    ops, amounts, erase, noise, share, cut = (
        getattr(plan, name) for name in ("ops", "amounts", "erase", "noise", "share", "cut")
    )
    return {
        "decode, crop, resize (DALI)": lambda: pipeline.decode(samples, clips, plan),
        "RandAugment (rhofast)": lambda: apply_ops(pixels, ops, amounts, mean=mean, std=std),
        "RandAugment (timm, Pillow)": lambda: by_timm(pictures, plan),
        "random erasing": lambda: erase_boxes(pixels, erase, noise),
        "mixup and CutMix": lambda: mix_neighbors(pixels, share, cut),
        "numbers of a plan, without the kit": lambda: plan_of(samples, PLAIN),
        "numbers of a plan, with the kit": lambda: plan_of(samples, KIT),
    }


def measure(works: dict[str, Callable[[], Any]], clips: int, rounds: int) -> dict[str, list[float]]:
    """Return CPU milliseconds of all threads per clip, by name and round, after a round that does not count."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            began = time.process_time()
            works[name]()
            if number:
                spent[name].append(1000 * (time.process_time() - began) / clips)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", help="videos, or folders of videos")
    parser.add_argument("--clips", type=int, default=64, help="clips of a batch, an even number (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for strong_augment.json and strong_augment.md")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    facts = facts_of_the_machine(("torch", "numpy", "timm", "pillow", "nvidia-dali-cuda130", "nvidia-dali-cuda120"))
    found = [pictures for pictures in map(read_clip, find_videos(options.videos)) if len(pictures) == FRAMES]
    samples = [
        Sample(sample=number, key=f"v{number}", label=0, pictures=found[number % len(found)], bytes_read=0)
        for number in range(options.clips)
    ]
    spent = measure(contenders(samples), options.clips, options.rounds)
    base = next(iter(spent.values()))
    rows = [
        (
            name,
            f"{statistics.median(each):.2f}",
            f"{min(each):.2f} to {max(each):.2f}",
            f"{statistics.median(one / other for one, other in zip(each, base, strict=True)):.1%}",
        )
        for name, each in spent.items()
    ]
    foot = (
        f"{options.clips} clips of {FRAMES} frames of {PLAIN.size} x {PLAIN.size} pixels from JPEG files of "
        f"{SHORT_SIDE} lines of {len(found)} videos, {options.rounds} rounds, "
        f"torch.set_num_threads({options.threads}). Shares are formed within a round."
    )
    settings = {**vars(options), "out": None, "videos": [str(path) for path in options.videos]}
    report = {"machine": facts, "options": settings, "ms_per_clip": spent}
    title = f"{options.clips} clips of {FRAMES} frames of {PLAIN.size} x {PLAIN.size}"
    write_table(
        "strong_augment", title, COLUMNS, rows, notes=[foot, facts_line(facts, load)], report=report, out=options.out
    )


if __name__ == "__main__":
    main()
