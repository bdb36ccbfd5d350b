"""What `rhofast plan` prints: the run, a column a codec, what starves first, and where every number comes from."""

from __future__ import annotations

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rhofast.capacity import Plan
from rhofast.figures import Fact, amount, weakest


def plan_tables(plan: Plan, *, sources: bool) -> Group:
    """The plan as tables and sentences. sources: each input and its source, too."""
    parts: list[Table | Text] = [_run(plan), _codecs(plan)]
    parts += [Text(f"{one.codec}: {sentence}") for one in plan.codecs for sentence in one.verdict]
    parts += [Text(f"Mind: {sentence}") for sentence in plan.cautions]
    if sources:
        parts.append(_inputs(plan))
    else:
        parts.append(
            Text("A result is as good as the weakest of what it rests on; --sources tells each input's source.")
        )
    return Group(*parts)


def _run(plan: Plan) -> Table:
    table = Table(title="The run", title_justify="left", show_header=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    for fact in plan.facts.values():
        table.add_row(fact.label, _value(fact), fact.origin)
    return table


def _codecs(plan: Plan) -> Table:
    table = Table(title="By codec, at the pace of the GPUs", title_justify="left")
    table.add_column("")
    for one in plan.codecs:
        table.add_column(escape(one.codec), justify="right")
    table.add_column("rests on")
    for name, first in plan.codecs[0].facts.items():
        row = [one.facts[name] for one in plan.codecs]
        table.add_row(first.label, *map(_value, row), weakest(fact.origin for fact in row))
    table.add_section()
    names = list(dict.fromkeys(limit.name for one in plan.codecs for limit in one.limits))
    for name in names:
        found = [{limit.name: limit for limit in one.limits}.get(name) for one in plan.codecs]
        cells = ["-" if limit is None else amount(limit.share, "share") for limit in found]
        origin = weakest(limit.origin for limit in found if limit is not None)
        table.add_row(f"asked of {name}", *cells, origin)
    return table


def _value(fact: Fact) -> str:
    """With its unit, unless the label says it."""
    text = amount(fact.value, fact.unit)
    return text.removesuffix(f" {fact.unit}") if fact.unit in fact.label.replace(",", "").split() else text


def _inputs(plan: Plan) -> Table:
    table = Table(title="What it rests on", title_justify="left")
    table.add_column("input")
    table.add_column("value", justify="right")
    table.add_column("")
    table.add_column("source", overflow="fold")
    for name, one in plan.inputs.items():
        table.add_row(escape(name), amount(one.value, one.unit), one.origin, escape(one.source))
    return table
