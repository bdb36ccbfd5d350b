"""The tables and sentences of `rhofast plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rhofast.analysis.capacity.quantities import Fact, amount, weakest
from rhofast.cli.console import cell

if TYPE_CHECKING:
    from rhofast.analysis.capacity.plan import Plan


def plan_tables(plan: Plan, *, sources: bool) -> Group:
    """Return the plan as tables and sentences, with every input and its source if `sources` is set."""
    parts: list[Table | Text] = [_plan_facts(plan), _plan_codecs(plan)]
    parts.append(
        Text(
            "The planner assumes that all stages overlap. Utilization is demand at full GPU speed divided by capacity."
        )
    )
    parts += [Text(f"{one.codec}: {sentence}") for one in plan.codecs for sentence in one.advice]
    parts += [Text(f"Note: {sentence}") for sentence in plan.notes]
    if sources:
        parts.append(_plan_inputs(plan))
    else:
        parts.append(
            Text("A result is as reliable as the weakest of its inputs. --sources lists the source of every input.")
        )
    return Group(*parts)


def _plan_facts(plan: Plan) -> Table:
    table = Table(title="The run", title_justify="left", show_header=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    for fact in plan.facts.values():
        table.add_row(fact.label, _fact_text(fact), fact.origin)
    return table


def _plan_codecs(plan: Plan) -> Table:
    table = Table(title="By codec, at full GPU speed", title_justify="left")
    table.add_column("")
    for one in plan.codecs:
        table.add_column(cell(one.codec), justify="right")
    table.add_column("origin")
    for name, first in plan.codecs[0].facts.items():
        row = [one.facts[name] for one in plan.codecs]
        table.add_row(first.label, *map(_fact_text, row), weakest(fact.origin for fact in row))
    table.add_section()
    names = list(dict.fromkeys(limit.name for one in plan.codecs for limit in one.limits))
    for name in names:
        found = [{limit.name: limit for limit in one.limits}.get(name) for one in plan.codecs]
        cells = ["-" if limit is None else amount(limit.share, "share") for limit in found]
        origin = weakest(limit.origin for limit in found if limit is not None)
        table.add_row(f"utilization of {name}", *cells, origin)
    return table


def _fact_text(fact: Fact) -> str:
    """Return the value with its unit, unless the label names the unit."""
    text = amount(fact.value, fact.unit)
    return text.removesuffix(f" {fact.unit}") if fact.unit in fact.label.replace(",", "").split() else text


def _plan_inputs(plan: Plan) -> Table:
    table = Table(title="Inputs", title_justify="left")
    table.add_column("input")
    table.add_column("value", justify="right")
    table.add_column("")
    table.add_column("source", overflow="fold")
    for name, one in plan.inputs.items():
        table.add_row(cell(name), amount(one.value, one.unit), one.origin, cell(one.source))
    return table
