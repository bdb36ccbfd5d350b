"""Where the result of an evaluation lies: the same again in the same file, anything else in another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rhofast.cli.tables import score_table
from rhofast.evaluation.scores import Evaluation, Scores

SETS: dict[str, Any] = {
    "train": {"where": "a", "name": "ucf101", "split": "train", "digest": "1" * 64, "samples": 9},
    "test": {"where": "b", "name": "ucf101", "split": "test", "digest": "2" * 64, "samples": 4},
}
RESULT = Evaluation(
    kind="knn",
    origin="rhofast run first, step 9",
    step=9,
    weights="0" * 64,
    folder=Path("runs/first"),
    trained=Scores(measures={"top-1": 0.5}, samples=4, left_out=[], per_class={}, confusion=None),
    classes=["a", "b"],
    shards=SETS,
    settings={"views": 2, "neighbors": 20},
)


def with_set(which: str, **facts: Any) -> dict[str, Any]:
    return {**SETS, which: {**SETS[which], **facts}}


@pytest.mark.parametrize(
    "other",
    [
        replace(RESULT, kind="retrieval"),
        replace(RESULT, weights="1" * 64),  # another checkpoint
        replace(RESULT, settings={"views": 2, "neighbors": 10}),
        replace(RESULT, shards=with_set("test", name="hmdb51", digest="3" * 64)),
        replace(RESULT, shards=with_set("test", digest="3" * 64)),  # another split, or part
        replace(RESULT, shards=with_set("train", digest="3" * 64)),
        replace(RESULT, shards=with_set("test", boxes="3" * 64)),
    ],
)
def test_another_evaluation_has_another_file(other: Evaluation) -> None:
    assert other.path != RESULT.path


def test_the_same_again_has_the_same_file_with_a_name_that_people_can_read() -> None:
    moved = with_set("test", where="elsewhere")
    scores = replace(RESULT.trained, measures={"top-1": 0.6})
    again = replace(RESULT, trained=scores, untrained=scores, shards=moved, chosen={"penalty": 1.0}, notes=("a",))
    assert again.path == RESULT.path and RESULT.path.parent == Path("runs/first/results")
    assert RESULT.path.name.startswith("knn-ucf101-test-") and RESULT.path.suffix == ".json"


def test_the_name_of_a_set_cannot_lead_out_of_the_folder() -> None:
    evil = replace(RESULT, shards=with_set("test", name="../../" + "x y" * 99, split="\x1b[31m/"))
    assert evil.path.parent == RESULT.path.parent and len(evil.path.name) < 120 and evil.path.name.isprintable()


@pytest.mark.parametrize(
    ("kind", "step", "backbone"),
    [
        ("knn", 9, "trained"), ("knn", 0, "untrained"), ("attentive", 0, "untrained"), ("linear", None, "loaded"),
        ("finetune", 0, "fine-tuned"), ("multilabel", None, "fine-tuned"), ("detection", 9, "fine-tuned"),
    ],
)  # fmt: skip
def test_a_result_says_what_its_backbone_is(kind: str, step: int | None, backbone: str) -> None:
    result = replace(RESULT, kind=kind, step=step, origin="slow_r18, untrained, seed 0")
    assert result.to_json()["backbone"] == backbone
    console = Console(record=True, width=100)
    console.print(score_table(result))
    said = console.export_text()
    assert f"│ {backbone} " in said
    assert ("fine-tuned from slow_r18, untrained, seed 0" in said) is (backbone == "fine-tuned")
