"""The commands that look at shard sets: `verify`, `inspect`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table

from rhofast.cli.console import cell, out, print_error, print_line, progress_bar, progress_bars
from rhofast.cli.options import OUTPUT, Overrides, ShardsArgument, check_png
from rhofast.cli.tables import count_text, summary_table, with_notes
from rhofast.storage.files import check_writable

if TYPE_CHECKING:
    from rhofast.ingest.extra_fields import FieldsFound

_FIELDS = 100  # fields of the user's own that are shown
_NAME = 60  # characters of the name of a field


def verify(
    shards: ShardsArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every sample too, as training does.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes. Default: one per core.")] = None,
) -> None:
    """Check a shard set against every promise of the format. Exit code 1 if one is broken."""
    from rhofast.data.sources import open_shards
    from rhofast.ingest.verify import verify_shards

    opened = open_shards(shards, check_files=False)
    with progress_bar() as progress:
        bar = progress.add_task("verifying", total=len(opened))
        problems = 0
        for problem in verify_shards(
            opened,
            deep=deep,
            workers=workers or os.cpu_count() or 1,
            on_progress=lambda done, _: progress.update(bar, completed=done),
        ):
            print_error(str(problem))
            problems += 1
    if problems:
        print_error(f"{shards}: {count_text(problems, 'problem')}")
        raise typer.Exit(1)
    held = f"{count_text(len(opened), 'sample')} in {count_text(len(opened.info.shards), 'shard')}"
    print_line(f"{shards}: as promised, {held}")


def inspect(
    shards: ShardsArgument,
    target: Annotated[
        Path | None, typer.Option("--out", metavar="PNG", help="File for histograms.", rich_help_panel=OUTPUT)
    ] = None,
    fields: Annotated[
        bool, typer.Option("--fields", help="List your own fields of the samples (extra), from 1,000 samples.")
    ] = False,
    every: Annotated[
        bool,
        typer.Option("--all", help="Read all of a large set. Default: 1,000 shards; with --fields, 1,000 samples."),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Print the contents of a shard set, and what it costs to read clips from it."""
    from rhofast.config.load import load_config
    from rhofast.data.sources import open_shards
    from rhofast.ingest.extra_fields import find_fields
    from rhofast.ingest.summary import summarize
    from rhofast.ingest.summary_plot import draw_summary

    if target is not None:
        check_png("--out", target)
        check_writable(target)
    config = load_config(None, overrides or [])
    opened = open_shards(shards, data=config.data)
    with progress_bars("reading indices") as (on_read,):
        summary = summarize(opened, config.clips, every=every, on_read=on_read)
    out.print(summary_table(opened.info, summary, config.clips))
    if fields:
        with progress_bars("reading fields") as (on_read,):
            found = find_fields(opened, every=every, on_read=on_read)
        out.print(fields_table(found))
    if target is not None:
        draw_summary(summary, target)
        print_line(f"Wrote {target}")


def fields_table(found: FieldsFound) -> Group:
    """Return the table of the fields of the user's own, for `rhofast inspect --fields`."""
    some = "all" if found.read + found.bad == found.total else f"{found.read + found.bad:,} of"
    notes = [f"Read: {some} {found.total:,} samples{'' if some == 'all' else '; --all reads all of them'}."]
    if found.without:
        notes.append(f"Without any field: {found.without:,}.")
    if found.others:
        notes.append(f"With fields of other names, which are too many to be listed: {found.others:,}.")
    if found.first_bad is not None:
        notes.append(f"Not readable: {found.bad:,}, the first one: {found.first_bad}.")
    table = Table(title="fields of your own (extra)", title_justify="left")
    for column in ("field", "samples", "types", "examples"):
        table.add_column(column, justify="right" if column == "samples" else "left", overflow="fold")
    for name, use in list(found.fields.items())[:_FIELDS]:
        types = use.types.most_common()
        kinds = types[0][0] if len(types) == 1 else ", ".join(f"{kind}: {count:,}" for kind, count in types)
        table.add_row(cell(name, _NAME), f"{use.samples:,}", cell(kinds), "\n".join(map(cell, use.examples)))
    if len(found.fields) > _FIELDS:
        table.add_row(f"... {len(found.fields) - _FIELDS:,} more", "", "", "")
    return with_notes(table, notes)
