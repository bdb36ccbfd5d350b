"""Frame average precision: hand-made cases, and a plain implementation of the definition, box by box."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from rhofast.evaluation.frame_ap import Detections, Truth, average_precisions, guessed_precisions, overlaps

Box = tuple[float, float, float, float]
LEFT, RIGHT, HALF = (0.0, 0.0, 0.4, 0.8), (0.5, 0.0, 0.9, 0.8), (0.0, 0.0, 0.4, 0.4)
TRUE = tuple[int, Box]  # image, box
FOUND = tuple[int, Box, float]  # image, box, score


def truth(*rows: tuple[int, Box, Sequence[int]], classes: int = 1) -> Truth:
    """True boxes: image, box, classes that it shows."""
    shows = np.zeros((len(rows), classes), dtype=np.bool_)
    for place, (_, _, numbers) in enumerate(rows):
        shows[place, list(numbers)] = True
    return Truth(
        image=np.array([row[0] for row in rows], dtype=np.int64),
        boxes=np.array([row[1] for row in rows], dtype=np.float64).reshape(-1, 4),
        shows=shows,
    )


def found(*rows: tuple[int, Box, Sequence[float]], classes: int = 1) -> Detections:
    """Detections: image, box, a score for each class."""
    return Detections(
        image=np.array([row[0] for row in rows], dtype=np.int64),
        boxes=np.array([row[1] for row in rows], dtype=np.float64).reshape(-1, 4),
        scores=np.array([row[2] for row in rows], dtype=np.float64).reshape(-1, classes),
    )


def average_precision(true: Truth, detections: Detections) -> float:
    (value,) = average_precisions(true, detections)
    return float(value)


def test_overlap_is_intersection_over_union() -> None:
    pairs = overlaps(np.array([LEFT, HALF]), np.array([LEFT, RIGHT, (0.2, 0.0, 0.6, 0.8)]))
    assert pairs[0] == pytest.approx([1, 0, 1 / 3])
    assert pairs[1] == pytest.approx([0.5, 0, 0.2])
    assert overlaps(np.array([[0.1, 0.1, 0.1, 0.5]]), np.array([[0.1, 0.1, 0.1, 0.5]])) == 0


@pytest.mark.parametrize(
    ("detections", "expected"),
    [
        ([(0, LEFT, [0.9]), (1, RIGHT, [0.8])], 1.0),
        ([(0, LEFT, [0.9])], 0.5),  # half of the truth is found
        ([], 0.0),
        ([(1, LEFT, [0.9]), (0, LEFT, [0.8]), (1, RIGHT, [0.7])], 2 / 3),  # 1/2, 2/3 become 2/3, 2/3
        (
            [(0, LEFT, [0.9]), (0, LEFT, [0.8]), (1, RIGHT, [0.7])],
            (1 + 2 / 3) / 2,
        ),  # the second of an image is wrong
        ([(0, HALF, [0.9]), (1, RIGHT, [0.8])], 1.0),  # an overlap of exactly 0.5 is enough
        ([(0, (0.0, 0.0, 0.4, 0.39), [0.9]), (1, RIGHT, [0.8])], 0.25),
        ([(2, LEFT, [0.9]), (0, LEFT, [0.8]), (1, RIGHT, [0.1])], 2 / 3),  # an image without truth has wrong ones only
        ([(0, (0.1, 0.2, 0.1, 0.3), [0.9]), (0, LEFT, [0.8]), (1, RIGHT, [0.1])], 1.0),  # no area: no detection
    ],
)
def test_hand_made_cases(detections: list[tuple[int, Box, list[float]]], expected: float) -> None:
    true = truth((0, LEFT, [0]), (1, RIGHT, [0]))
    assert average_precision(true, found(*detections)) == pytest.approx(expected)


def test_the_best_score_takes_the_truth_wherever_it_stands() -> None:
    """PySlowFast's copy would give the truth to the first one of the file, and count the better one as wrong."""
    true = truth((0, LEFT, [0]))
    assert average_precision(true, found((0, HALF, [0.2]), (0, LEFT, [0.9]))) == 1
    assert average_precision(true, found((0, LEFT, [0.9]), (0, HALF, [0.2]))) == 1


def test_a_detection_takes_the_nearest_truth_even_if_that_is_taken() -> None:
    """A second detection of the same person is not given to another person whom it overlaps less."""
    near = (0.0, 0.0, 0.4, 0.7)
    true = truth((0, LEFT, [0]), (0, (0.0, 0.0, 0.4, 0.5), [0]))
    assert average_precision(true, found((0, LEFT, [0.9]), (0, near, [0.8]))) == 0.5


def test_classes_are_apart_and_one_without_truth_has_no_value() -> None:
    true = truth((0, LEFT, [0, 1]), (1, RIGHT, [0]), classes=3)
    detections = found((0, LEFT, [0.9, 0.1, 0.5]), (1, RIGHT, [0.2, 0.8, 0.5]), classes=3)
    values = average_precisions(true, detections)
    assert values[:2] == pytest.approx([1, 0.5]) and math.isnan(values[2])


def test_equal_scores_rank_in_their_order() -> None:
    true = truth((0, LEFT, [0]))
    assert average_precision(true, found((0, LEFT, [0.5]), (1, LEFT, [0.5]))) == 1
    assert average_precision(true, found((1, LEFT, [0.5]), (0, LEFT, [0.5]))) == 0.5


def test_of_the_scores_of_an_image_the_best_count_and_those_of_another_image_take_no_room() -> None:
    """51 scores of three classes in image 0, of which the last is the right one; a second image has its own room."""
    true = truth((0, LEFT, [2]), (1, LEFT, [2]), classes=3)
    rows = [(0, RIGHT, [0.9, 0.8, 0.7])] * 16 + [(0, LEFT, [0.6, 0.5, 0.1]), (1, LEFT, [0.0, 0.0, 0.3])]
    every, best = (
        float(average_precisions(true, found(*rows, classes=3), capacity=capacity)[2]) for capacity in (None, 50)
    )
    # of class 2 there are 16 wrong ones, then that of image 1, then that of image 0, which is the 51st there
    assert every == pytest.approx((2 / 18 + 2 / 18) / 2) and best == pytest.approx(1 / 17 / 2)


def test_at_the_edge_of_the_capacity_the_first_of_equal_scores_stays() -> None:
    true = truth((0, LEFT, [0]))
    assert average_precisions(true, found((0, LEFT, [0.5]), (0, RIGHT, [0.5])), capacity=1)[0] == 1
    assert average_precisions(true, found((0, RIGHT, [0.5]), (0, LEFT, [0.5])), capacity=1)[0] == 0


def test_a_guess_is_what_random_scores_give_on_average() -> None:
    random = np.random.default_rng(0)
    images = np.repeat(np.arange(600), 2)
    boxes = np.tile(np.array([LEFT, RIGHT]), (600, 1))
    true = Truth(image=images, boxes=boxes, shows=random.random((1200, 3)) < (0.3, 0.7, 0.0))
    scores = random.random((1200, 3))
    found_at = Detections(image=images, boxes=boxes, scores=scores)
    shuffled = [
        average_precisions(true, Detections(image=images, boxes=boxes, scores=random.random((1200, 3))))
        for _ in range(5)
    ]
    guess = guessed_precisions(true, found_at)
    assert guess[:2] == pytest.approx(true.shows.mean(axis=0)[:2]) and math.isnan(guess[2])
    assert np.mean(shuffled, axis=0)[:2] == pytest.approx(guess[:2], abs=0.03)
    half = Detections(image=images[::2], boxes=boxes[::2], scores=scores[::2])
    hits = true.shows[::2].sum(axis=0)[:2]
    assert guessed_precisions(true, half)[:2] == pytest.approx(hits / true.shows.sum(axis=0)[:2] * hits / 600)


def plain_iou(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    if wide <= 0 or high <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return wide * high / (areas - wide * high)


def plain_average_precision(true: list[TRUE], detections: list[FOUND]) -> float:
    """The definition, written down for one class with lists: match by image, then integrate at every threshold."""
    verdicts: list[tuple[float, bool]] = []
    for image in {row[0] for row in detections}:
        boxes = [box for number, box in true if number == image]
        used: set[int] = set()
        for _, box, score in sorted((row for row in detections if row[0] == image), key=lambda row: -row[2]):
            shares = [plain_iou(box, other) for other in boxes]
            best = max(range(len(boxes)), key=shares.__getitem__) if boxes else -1
            hit = best >= 0 and shares[best] >= 0.5 and best not in used
            used |= {best} if hit else set()
            verdicts.append((score, hit))
    verdicts.sort(key=lambda verdict: -verdict[0])
    points = [
        (sum(hit for _, hit in verdicts[:n]) / len(true), sum(hit for _, hit in verdicts[:n]) / n)
        for n in range(1, len(verdicts) + 1)
    ]
    area, before = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points}):
        area += (recall - before) * max(precision for other, precision in points if other >= recall)
        before = recall
    return area


def random_case(seed: int) -> tuple[Truth, Detections]:
    """Three classes in seven images; detections are moved truth, some in images without any."""
    random = np.random.default_rng(seed)
    images, classes, count, more = 7, 3, 30, 90
    corner = random.uniform(0, 0.5, (count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(0.1, 0.5, (count, 2))], axis=1)
    true = Truth(image=random.integers(0, images, count), boxes=boxes, shows=random.random((count, classes)) < 0.4)
    base = random.integers(0, count, more)
    moved = boxes[base] + random.normal(0, 0.04, (more, 4))
    moved = np.sort(moved.reshape(more, 2, 2), axis=1).reshape(more, 4)
    image = np.where(random.random(more) < 0.9, true.image[base], random.integers(0, images + 2, more))
    scores = random.permutation(more * classes).reshape(more, classes) / (more * classes)  # all different
    return true, Detections(image=image, boxes=moved, scores=scores)


@pytest.mark.parametrize("capacity", [None, 20, 5])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_definition_on_random_boxes(seed: int, capacity: int | None) -> None:
    """With a capacity, of the lines of an image those with the best scores are left, whatever their classes."""
    true, drawn = random_case(seed)
    values = average_precisions(true, drawn, capacity=capacity)
    lines = [
        (int(drawn.image[n]), c, tuple(drawn.boxes[n]), float(drawn.scores[n, c])) for n in range(90) for c in range(3)
    ]
    by_score = sorted(lines, key=lambda line: -line[3])
    left = [
        line for image in set(drawn.image.tolist()) for line in [one for one in by_score if one[0] == image][:capacity]
    ]
    for c in range(3):
        of_class = [(int(true.image[n]), tuple(true.boxes[n])) for n in np.flatnonzero(true.shows[:, c])]
        rows = [(image, box, score) for image, number, box, score in left if number == c]
        assert values[c] == pytest.approx(plain_average_precision(of_class, rows), abs=1e-12)
        assert 0.0 < values[c] < 0.9
