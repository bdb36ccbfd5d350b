"""The command that makes the box file of a shard set from published csv files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rhofast.cli.console import print_line
from rhofast.cli.options import OUTPUT, local_folder


def boxes(
    shards: Annotated[
        Path,
        typer.Argument(parser=local_folder, metavar="SHARDS", help="Folder of a shard set.", show_default=False),
    ],
    truth: Annotated[
        Path,
        typer.Option(metavar="CSV", help="Ground truth, such as ava_val_v2.2.csv.", show_default=False),
    ],
    classes: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Classes that count: ava_action_list_v2.2_for_activitynet_2019.pbtxt, or a .csv of number and name.",
            show_default=False,
        ),
    ],
    detections: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Boxes of a person detector, with scores. Default: none."),
    ] = None,
    excluded: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="Key frames that do not count: ava_val_excluded_timestamps_v2.2.csv. Default: none."
        ),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--out", metavar="ARROW", help="The file. Default: SHARDS/boxes.arrow.", rich_help_panel=OUTPUT),
    ] = None,
) -> None:
    """Store the boxes of key frames with their actions, as AVA publishes them, in one file beside the shards."""
    from rhofast.data.format.box_file import BOXES_FILE, read_boxes, write_boxes
    from rhofast.data.format.dataset import open_folder
    from rhofast.ingest.ava_boxes import make_boxes
    from rhofast.storage.files import check_writable

    path = target or shards / BOXES_FILE
    check_writable(path)
    opened = open_folder(shards)
    table, facts = make_boxes(opened, truth, classes, detections=detections, excluded=excluded)
    write_boxes(path, table, facts)
    stored = read_boxes(path, opened)  # what was written is what evaluations will read
    drawn = int(stored.detected.sum())
    twice = len(stored.repeats()[0])
    counted = [f"{what}: {count:,}" for what, count in facts.left_out.items() if count]
    print_line(
        f"{path}: {len(stored):,} key frames of {len(opened):,} videos, {len(stored.boxes) - drawn:,} annotated and "
        f"{drawn:,} detected boxes; classes that count: {len(facts.classes)}"
        + (f"; left out: {', '.join(counted)}" if counted else "")
        + (f"; actions listed twice, which are to be found twice: {twice:,}" if twice else "")
    )
