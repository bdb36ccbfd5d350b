"""Tables as a terminal shows them."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from rhofast.cli.tables import count_text, score_table, with_notes
from rhofast.evaluation.scores import Evaluation, Scores

ORIGIN = "path/to/a/file_with_a_long_name.py:Network, untrained, seed 0"


@pytest.mark.parametrize("width", [100, 40])
def test_where_weights_come_from_stays_on_one_line_where_there_is_room(width: int) -> None:
    scores = Scores(
        measures={"top-1": 1.0, "top-5": 1.0},
        samples=1,
        left_out=[],
        per_class={"a": 1.0},
        confusion=[[1, 0], [0, 0]],
        chance={"top-1": 0.625},
    )
    evaluation = Evaluation(
        kind="knn",
        origin=ORIGIN,
        step=0,
        weights="0" * 64,
        folder=Path(),
        trained=scores,
        classes=["a", "b"],
    )
    console = Console(file=io.StringIO(), width=width)
    console.print(score_table(evaluation))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    (chance,) = (line for line in lines if "chance" in line)
    assert "62.5%" in chance and chance.count("%") == 1  # of the other measure it is not known
    assert (ORIGIN in lines) is (width == 100)
    assert max(map(len, lines)) <= width


def test_notes_below_a_narrow_table_are_as_wide_as_the_terminal_and_plain_text() -> None:
    table = Table()
    table.add_column("a")
    console = Console(file=io.StringIO(), width=60)
    console.print(with_notes(table, ["one two three four five six [bold]seven", "eight\x1b[31m" + " nine" * 20]))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert "one two three four five six [bold]seven" in lines
    assert "\x1b" not in "".join(lines) and 40 < max(map(len, lines)) <= 60


def test_one_thing_is_not_plural() -> None:
    assert [count_text(count, "shard") for count in (0, 1, 2000)] == ["0 shards", "1 shard", "2,000 shards"]
