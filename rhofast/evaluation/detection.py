"""Test a detector on key frames: actions of detected persons, frame mAP, and a file for the official script.

    boxes.arrow of the test set --score of the person detector--> boxes to look at --Detector--> scores per action
    scores of the classes that count, ground truth --frame_ap.py--> AP per class, mAP

A detected box is compared with the ground truth as the detector drew it, by its shares of the whole frame. Key frames
that were not detected in, and those that cannot be read, count as missed. Ranks compute whole batches, so that scores
do not depend on their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.key_frames import KeyFrames
from rhofast.data.loader.box_loaders import BoxEvalLoader
from rhofast.errors import ConfigError, NotFiniteError
from rhofast.evaluation.detector import Detector
from rhofast.evaluation.features import Progress
from rhofast.evaluation.frame_ap import (
    OFFICIAL_CAPACITY,
    Detections,
    Truth,
    average_precisions,
    guessed_precisions,
)
from rhofast.evaluation.multiview import test_augment
from rhofast.evaluation.scores import Scores
from rhofast.storage.files import writing_atomically

MAP = "mAP"
"""Name of the measure: mean over classes of the frame average precision at an overlap of 0.5."""

OFFICIAL_MAP = f"mAP, {OFFICIAL_CAPACITY} per frame"
"""Name of the same measure where only the best scores of each frame count, as in ActivityNet's script."""

_HINT_DETECTIONS = "make the file again with --detections CSV, or set eval.test_boxes=truth"


@dataclass(frozen=True, kw_only=True, eq=False)
class Detected:
    """The scores of D boxes.

    Attributes:
        key_frames: Key frames and boxes that were looked at.
        box: Numbers of the boxes that were scored, ascending, i64[D].
        scores: Probability of each class that counts, f32[D, C], in the order of `key_frames.classes`.
        left_out: Key frames that could not be read, one line each.
    """

    key_frames: KeyFrames
    box: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    left_out: list[str]


def boxes_to_train_on(found: KeyFrames, config: Config, *, where: str) -> KeyFrames:
    """Return the boxes to train on: those of annotators, and of the person detector those with a good score.

    Args:
        found: All boxes of the training set.
        config: With `eval.box_score`.
        where: Name of the file, for the error.

    Raises:
        ConfigError: There are none.
    """
    chosen = found.where(~found.detected | (found.score >= config.eval.box_score))
    if not len(chosen):
        raise ConfigError(f"{where}: no box to train on", hint="make the file from a csv file of ground truth")
    return chosen


def boxes_to_test_on(found: KeyFrames, config: Config, *, where: str) -> KeyFrames:
    """Return the boxes to test on: those of the person detector with a good score, or the true ones.

    Args:
        found: All boxes of the test set.
        config: With `eval.test_boxes` and `eval.box_score`.
        where: Name of the file, for the error.

    Raises:
        ConfigError: There are none, or there is no ground truth to compare with.
    """
    if found.detected.all():
        raise ConfigError(f"{where}: no ground truth", hint="make the file from a csv file of ground truth")
    if config.eval.test_boxes == "truth":
        return found.where(~found.detected)
    if not found.detected.any():
        raise ConfigError(f"{where}: no detected boxes", hint=_HINT_DETECTIONS)
    chosen = found.where(found.detected & (found.score >= config.eval.box_score))
    if not len(chosen):
        best = found.score[found.detected].max()
        raise ConfigError(
            f"{where}: no detected box has eval.box_score={config.eval.box_score:g}; the best one has {best:g}",
            hint="lower it: --set eval.box_score=...",
        )
    return chosen


def detect(
    detector: Detector,
    shards: ShardSet,
    key_frames: KeyFrames,
    config: Config,
    *,
    progress: Progress | None = None,
) -> Detected:
    """Score boxes, each rank its batches, and join the scores on every rank.

    Args:
        detector: The network, on the device on which it runs. Its mode is restored at the end.
        shards: The test shards.
        key_frames: The key frames, and the boxes to score.
        config: Sections `clips` and `augment` for the input, `eval` for the test, `data`, `train.precision`.
        progress: Called with (key frames done, key frames in all), as if every rank had done as much as this one.

    Returns:
        The scores, in the order of the boxes.

    Raises:
        NotFiniteError: A score is not finite.
        ShardError: The shards cannot be read.
    """
    state, device = PartialState(), next(detector.parameters()).device
    lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.precision)
    lower = lower if device.type == "cuda" else None
    columns = torch.tensor([number - 1 for number in key_frames.classes], device=device)
    loader = BoxEvalLoader(
        shards,
        key_frames,
        clips=config.clips,
        augment=test_augment(config),
        data=config.data,
        batch_size=config.eval.batch_size,
        rank=state.process_index,
        world_size=state.num_processes,
        device=device,
        dtype=torch.float32 if lower is None else torch.float16,
    )
    was_training, done = detector.training, 0
    numbers, values = list[npt.NDArray[np.int64]](), list[npt.NDArray[np.float32]]()
    detector.eval()
    try:
        with loader, torch.inference_mode():
            for views in loader:
                with torch.autocast(device.type, dtype=lower, enabled=lower is not None):
                    scores = detector(views.pixels[:, 0], views.boxes).float()
                numbers.append(views.box.cpu().numpy())
                values.append(scores[:, columns].cpu().numpy())
                done += len(views.sample)
                if progress is not None:
                    progress(min(done * state.num_processes, len(key_frames)), len(key_frames))
    finally:
        detector.train(was_training)
    return _joined(key_frames, numbers, values, [str(error) for error in loader.bad])


def score_detections(detected: Detected, found: KeyFrames) -> Scores:
    """Compare scores with the ground truth.

    Args:
        detected: Scores of boxes.
        found: All boxes of the test set, with the ground truth.

    Returns:
        mAP, with all scores and with those that the official script looks at; the average precision of each class that
        has any truth; and as chance the mAP of random scores.

    Raises:
        ConfigError: No class that counts has any truth.
    """
    truth, looked_at, shows = found.where(~found.detected), detected.key_frames, counted_truth(found)
    columns = np.array(list(found.classes)) - 1
    if not shows.any():
        raise ConfigError("no true box shows a class that counts", hint="check the list of classes: rhofast boxes")
    box = np.arange(len(truth.boxes))
    again, action = truth.repeats()  # an action that is said of a box twice is to be found twice, as in the original
    box, shows = np.concatenate([box, again]), np.concatenate([shows, action[:, None] - 1 == columns])
    true = Truth(image=_image(truth, box), boxes=truth.boxes[box], shows=shows)
    drawn = Detections(
        image=_image(looked_at, detected.box),
        boxes=looked_at.boxes[detected.box],
        scores=detected.scores.astype(np.float64),
    )
    values = average_precisions(true, drawn)
    per_class = {name: float(value) for name, value in zip(found.classes.values(), values, strict=True) if value >= 0}
    return Scores(
        measures={
            MAP: float(np.nanmean(values)),
            OFFICIAL_MAP: float(np.nanmean(average_precisions(true, drawn, capacity=OFFICIAL_CAPACITY))),
        },
        samples=len(found),
        left_out=detected.left_out,
        per_class=per_class,
        confusion=None,
        chance={MAP: float(np.nanmean(guessed_precisions(true, drawn)))},
    )


def counted_truth(found: KeyFrames) -> npt.NDArray[np.bool_]:
    """Return which of the C classes that count each of the G true boxes shows, bool[G, C]."""
    columns = np.array(list(found.classes)) - 1
    shows: npt.NDArray[np.bool_] = found.targets(np.flatnonzero(~found.detected))[:, columns] > 0
    return shows


def write_detections(path: Path, detected: Detected, shards: ShardSet) -> None:
    """Write all scores as the official script of AVA reads them.

    A line is `video_id, second, x1, y1, x2, y2, action, score`, for each box and each class that counts.
    Coordinates are those of the box file, and scores have all their digits, so that the file has the mAP of the scores.

    Args:
        path: The csv file.
        detected: The scores.
        shards: The test shards, whose keys are the ids of the videos.

    Raises:
        OSError: The file cannot be written.
    """
    frames = detected.key_frames
    place = frames.place_of_box()[detected.box]
    keys = {sample: shards.row(sample).key for sample in np.unique(frames.sample[place]).tolist()}
    with writing_atomically(path) as file:
        for row, box, scores in zip(place.tolist(), detected.box.tolist(), detected.scores.astype(str), strict=True):
            sides = ",".join(map(repr, frames.boxes[box].tolist()))
            start = f"{keys[int(frames.sample[row])]},{int(frames.second[row]):04d},{sides}"
            file.writelines(f"{start},{action},{score}\n" for action, score in zip(frames.classes, scores, strict=True))


def _joined(
    key_frames: KeyFrames,
    numbers: list[npt.NDArray[np.int64]],
    values: list[npt.NDArray[np.float32]],
    bad: list[str],
) -> Detected:
    """Join the scores of all ranks; raise NotFiniteError if one is not finite."""
    box = np.concatenate([np.zeros(0, dtype=np.int64), *numbers])
    scores = np.concatenate([np.zeros((0, len(key_frames.classes)), dtype=np.float32), *values])
    parts = gather_object([(box, scores, bad)]) if PartialState().num_processes > 1 else [(box, scores, bad)]
    box, scores = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    order = np.argsort(box)
    if not np.isfinite(scores).all():
        raise NotFiniteError("a score of the detector is not finite", hint="train with a lower optim.base_lr")
    return Detected(
        key_frames=key_frames,
        box=box[order],
        scores=scores[order],
        left_out=[line for part in parts for line in part[2]],
    )


def _image(frames: KeyFrames, boxes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return a number of the key frame of each box that is the same in every selection of boxes, i64[N]."""
    place = frames.place_of_box()[boxes]
    image: npt.NDArray[np.int64] = (frames.sample[place] << 32) | frames.frame[place]
    return image
