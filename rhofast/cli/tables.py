"""The tables that commands print: shard sets, dry runs, weights, scores, benchmarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rhofast.checkpoint.run_folder import FINE_TUNED, KINDS, set_name
from rhofast.cli.console import byte_text, cell, duration_text
from rhofast.display.text import printable

if TYPE_CHECKING:  # a command loads what it needs, when it needs it
    from rhofast.checkpoint.export import Transfer
    from rhofast.config.schema import ClipConfig
    from rhofast.data.format.dataset_json import DatasetInfo
    from rhofast.evaluation.scores import Evaluation
    from rhofast.ingest.cost_estimate import CodecEstimate, CodecMetrics, DryRunEstimate
    from rhofast.ingest.summary import Summary

_FACT = 2_000  # characters of a value
_NAME = 60  # characters of a name in a list of names
_REASONS = 12  # kinds of things passed over that are shown
_ENDS = 6  # classes that are shown of the best, and of the worst, where there are many


def set_table(
    target: Path,
    info: DatasetInfo,
    *,
    listed: int,
    passed_over: Counter[str],
    as_published: int | None,
    seconds: float,
) -> Table:
    """Return the table of a finished build, for `rhofast shard`.

    Args:
        target: Folder or address of the set.
        info: The set's description.
        listed: Number of videos that the source listed.
        passed_over: Number of other things in the source, by reason.
        as_published: Number of videos that the data set had when it was published; None if it is not known.
        seconds: Duration of the build, in seconds.
    """
    count, refused = info.num_samples, sum(info.refused.values())
    reasons = ", ".join(f"{number} {reason}" for reason, number in info.refused.items())
    held = f"{count_text(count, 'sample')} in {count_text(len(info.shards), 'shard')}"
    found = f"{listed:,}" if as_published is None else f"{listed:,} of {as_published:,} published"
    rows = {
        "videos listed": found,
        **({"passed over": _passed_over_text(passed_over)} if passed_over else {}),
        "stored": f"{held}, {byte_text(info.num_bytes)}",
        "refused": f"{refused:,} ({reasons}); see {target / 'refused.jsonl'}" if refused else "none",
        "duration": f"{duration_text(info.seconds)}, {info.num_frames:,} frames",
        "codec": "; ".join(map(_codec_text, info.codecs)),
        "classes": f"{len(info.classes):,}" if info.classes else "none",
        "time taken": duration_text(seconds),
    }
    return _facts(f"{target}: {info.name} ({info.split})", rows)


def _codec_text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" if name != "name" else str(value) for name, value in settings.items())


def count_text(count: int, noun: str) -> str:
    """Return a number of things, such as `1 shard` or `2,000 shards`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _passed_over_text(counts: Counter[str]) -> str:
    shown = ", ".join(f"{count:,} {printable(reason, _NAME)}" for reason, count in counts.most_common(_REASONS))
    return shown if len(counts) <= _REASONS else f"{shown}, ... ({sum(counts.values()):,} in all)"


def with_notes(table: Table, notes: Iterable[str]) -> Group:
    """Return a table with notes below it that are as wide as the terminal; captions of Rich are as narrow as the table.

    Args:
        table: The table.
        notes: Plain text, one note per paragraph.
    """
    return Group(table, *(Text(printable(note, _FACT), style="table.caption") for note in notes))


def _facts(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=cell(title), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, value in rows.items():
        table.add_row(label, cell(value, _FACT))
    return table


def summary_table(info: DatasetInfo, summary: Summary, clips: ClipConfig) -> Table:
    """Return the table of a set's contents and reading costs, for `rhofast inspect`."""

    def top(counts: dict[Any, int], form: Callable[[Any], str]) -> str:
        counts = {value: count for value, count in counts.items() if count}
        shown = ", ".join(f"{form(value)}: {count}" for value, count in list(counts.items())[:8])
        return f"{shown}, ... ({len(counts)} in all)" if len(counts) > 8 else shown

    p10, median, p90 = summary.seconds
    geometry = f"{clips.num_clips} clips x {clips.num_frames} frames, stride {clips.frame_stride} at {clips.fps:g} fps"
    rows = {
        "samples": f"{summary.samples:,} in {count_text(summary.shards, 'shard')}",
        "duration": f"{duration_text(summary.hours * 3600)}; each {median:.1f} s (10 %: {p10:.1f}, 90 %: {p90:.1f})",
        "frames": f"{summary.frames:,}, {summary.frame_bytes / 1000:.1f} kB each",
        "bytes": byte_text(summary.bytes),
        **({"codecs": top(summary.codecs, str)} if len(summary.codecs) > 1 else {}),
        "sizes": top(summary.sizes, lambda size: f"{size[0]}x{size[1]}"),
        "frame rates": top(summary.rates, lambda rate: f"{rate:g}"),
        "labels": top({**summary.labels, "unlabeled": summary.unlabeled}, lambda name: printable(name, _NAME)),
        **({"further labels": _several_text(summary)} if summary.several[0] else {}),
        "refused": top(summary.refused, lambda reason: printable(reason, _NAME)) or "none",
        "clip geometry": geometry,
        "bytes read per sample": byte_text(summary.clip_bytes),
        "read amplification": f"{summary.read_amplification:.2f} (bytes read / bytes of the frames used)",
        "decode amplification": f"{summary.decode_amplification:.2f} (frames decoded / frames used)",
    }
    if summary.read < summary.samples:
        of = f"{count_text(summary.read, 'sample')}, in {count_text(summary.read_shards, 'shard')}"
        rows["read"] = f"{of}: all other counts are of these; --all reads all of them"
    codecs = ", ".join(str(settings["name"]) for settings in info.codecs)
    return _facts(f"{info.name} ({info.split}), codec {codecs}", rows)


def _several_text(summary: Summary) -> str:
    samples, labels, timed = summary.several
    when = "all with times" if timed == labels else f"{timed:,} with times" if timed else "without times"
    return f"{labels:,} ({when}) of {samples:,} samples"


def transfer_table(transfer: Transfer, *, target: str | None = None) -> Table:
    """Return the table of exported or imported weights; entries that were not taken over are named.

    Args:
        transfer: What was written.
        target: Where it is, if not at `transfer.target`.
    """
    entries = transfer.entries
    rows = {
        "written": target or str(transfer.target),
        "from": transfer.origin,
        "backbone": " ".join([transfer.backbone, *(f"{key}={value}" for key, value in transfer.options.items())]),
        "input": str(transfer.card["input"]["text"]),
        "taken over": f"{len(entries.matched)} entries",
        "left behind": _entry_text(entries.dropped),
        "missing": _entry_text(entries.missing),
    }
    return _facts("Weights", rows)


def _entry_text(names: list[str]) -> str:
    """Name a few entries; of many, count the entries of each module."""
    if len(names) > 12:
        counts = Counter(printable(name.partition(".")[0], _NAME) for name in names)
        shown = [f"{owner}.* ({count})" if count > 1 else owner for owner, count in counts.items()]
    else:
        shown = [printable(name, _NAME) for name in names]
    return f"{len(names)}: {', '.join(shown)}" if names else "none"


def score_table(evaluation: Evaluation) -> Group:
    """Return the measures of an evaluation: trained, untrained and by chance."""
    origin, measures = evaluation.origin, list(evaluation.trained.measures)
    if evaluation.kind in FINE_TUNED:
        origin = f"fine-tuned from {origin}"
    table = Table(
        title=cell(f"{KINDS[evaluation.kind]} on {set_name(evaluation.shards.get('test', {})) or 'held-out videos'}"),
        title_justify="left",
    )
    heads = [name.replace(" at ", "\nat ") if len(measures) > 2 else name for name in measures]
    for column in ("backbone", *heads, "key frames" if evaluation.kind == "detection" else "videos"):
        table.add_column(column, justify="left" if column == "backbone" else "right")
    for name, one in ((evaluation.backbone, evaluation.trained), ("untrained", evaluation.untrained)):
        if one is not None:
            table.add_row(name, *(f"{value:.1%}" for value in one.measures.values()), f"{one.samples:,}")
    if chance := evaluation.trained.chance:
        table.add_row("chance", *(f"{chance[name]:.1%}" if name in chance else "" for name in measures), "")
    return with_notes(table, [origin])


def class_table(evaluation: Evaluation) -> Table:
    """Return the first measure per class, best first; of many classes, the best and the worst."""
    scores = evaluation.trained
    counts = {}
    if scores.confusion is not None:
        counts = {name: f"{sum(row):,}" for name, row in zip(evaluation.classes, scores.confusion, strict=True)}
    ranked = sorted(scores.per_class, key=lambda name: (-scores.per_class[name], name))
    middle = len(ranked) > 2 * _ENDS
    table = Table(title="by class", title_justify="left")
    measure = scores.main[0].removeprefix("m")  # the mean of mAP is over the classes
    for column in ("class", measure, *(["videos"] if counts else [])):
        table.add_column(column, justify="left" if column == "class" else "right")
    for number, name in enumerate(ranked):
        if middle and number == _ENDS:
            table.add_row(f"... {len(ranked) - 2 * _ENDS} more")
        if not middle or not _ENDS <= number < len(ranked) - _ENDS:
            table.add_row(cell(name, _NAME), f"{scores.per_class[name]:.1%}", *([counts[name]] if counts else []))
    return table


def sweep_table(chosen: Mapping[str, Any]) -> Table:
    """Return the settings that attentive probes were trained with, and their scores on the validation videos.

    Args:
        chosen: What the evaluation chose: rate and decay, and all of them as `sweep`.
    """
    table = Table(title="all probes, on validation videos", title_justify="left")
    measure = next(name for name in ("top1", "mAP") if name in chosen["sweep"][0])
    for column in ("rate", "decay", {"top1": "top-1"}.get(measure, measure), "loss", ""):
        table.add_column(column, justify="right" if column else "left")
    for one in chosen["sweep"]:
        tested = "tested" if (one["rate"], one["decay"]) == (chosen["rate"], chosen["decay"]) else ""
        table.add_row(f"{one['rate']:g}", f"{one['decay']:g}", f"{one[measure]:.1%}", f"{one['loss']:.3f}", tested)
    return table


def bench_table(report: dict[str, Any]) -> Group:
    """Return the table of a bench report: one column per source of batches, with medians and ranges of the rounds."""
    texts: dict[str, tuple[str, Callable[[float], str]]] = {
        "clips_per_second": ("clips/s", lambda value: f"{value:,.1f}"),
        "frames_per_second": ("frames/s", lambda value: f"{value:,.0f}"),
        "step_seconds": ("seconds per batch", lambda value: f"{value:.4f}"),
        "data_wait_share": ("data wait (device idle)", lambda value: f"{value:.2%}"),
        "host_blocked_share": ("host blocked on the loader", lambda value: f"{value:.2%}"),
        "readiness": ("readiness", lambda value: f"{value:.2%}"),
        "gigabytes_per_second": ("GB/s read", lambda value: f"{value:.3f}"),
        "read_amplification": ("bytes read / used", lambda value: f"{value:.2f}"),
        "decode_amplification": ("frames decoded / used", lambda value: f"{value:.2f}"),
        "bad_samples": ("bad samples per round", lambda value: f"{value:g}"),
    }
    summary, machine, warm_up = report["summary"], report["machine"], report["warm_up"]
    ranks = f", {report['world_size']} ranks" if report["world_size"] > 1 else ""
    notes = [
        f"Medians and ranges of {report['rounds']} rounds of {report['batches']} batches. Warm-up: "
        f"{warm_up['batches']} batches in {warm_up['seconds']:.1f} s, the first batch after "
        f"{warm_up['first_batch_seconds']:.1f} s.",
        f"Device: {machine['device']}{ranks}. CPU: {machine['cpu']}, {machine['cores']} cores per rank.",
    ]
    for stage, shares in report.get("stages", {}).items():
        notes.append(f"Stage {stage}: " + ", ".join(f"{value:.0%} {state}" for state, value in shares.items()) + ".")
    if "headspace" in report:
        gain = report["headspace"]
        notes.append(
            f"Headspace: with an infinitely fast loader, training would be {gain['median']:.3f} times as fast "
            f"({gain['lowest']:.3f} to {gain['highest']:.3f})."
        )
    if not all(measurement["loader_idle"] for measurement in report["measurements"]):
        notes.append("Some measurements from memory began while the loader was still busy, so they may be too slow.")
    if report.get("advice"):
        notes.append(f"Advice: {report['advice']}.")
    table = Table(title=f"bench {report['what']}", title_justify="left")
    table.add_column("", style="bold")
    for source in summary:
        table.add_column(f"batches from {source}", justify="right")
    for name, (label, form) in texts.items():
        cells = [
            f"{form(spread['median'])}  ({form(spread['lowest'])} to {form(spread['highest'])})" if spread else "-"
            for spread in (numbers.get(name) for numbers in summary.values())
        ]
        if any(cell != "-" for cell in cells):
            table.add_row(label, *cells)
    return with_notes(table, notes)


def estimate_table(estimate: DryRunEstimate, passed_over: Counter[str]) -> Group:
    """Return the table of a dry run: one column per codec.

    Args:
        estimate: The result of the dry run.
        passed_over: Number of things in the source that are not listed, by reason.
    """
    clips, tried, count = estimate.clips, estimate.tried, estimate.videos
    refused = [
        f"{one.codec['name']}: " + ", ".join(f"{number} {reason}" for reason, number in one.refused.items())
        for one in estimate.codecs
        if one.refused
    ]
    geometry = f"{clips.num_clips} clips x {clips.num_frames} frames, stride {clips.frame_stride} at {clips.fps:g} fps"
    notes = [
        f"Sources: {byte_text(estimate.total_source_bytes)} in all, {byte_text(estimate.source_bytes)} per video.",
        "Totals are for all videos" + (", with 95 % intervals." if 1 < tried < count else "."),
        "PSNR (higher is better; above 40 dB, losses are hardly visible) and SSIM (1 is identical) are relative to the "
        "resized source.",
        f"Clips: {geometry}. Bytes read and frames decoded are relative to those used; 1 is the minimum.",
        "--samples-per-shard is the value for shards of about 1 GB.",
        *([f"Passed over: {_passed_over_text(passed_over)}."] if passed_over else []),
        *(["Refused videos, of those tried: " + "; ".join(refused) + "."] if refused else []),
        f"Made with {estimate.encoder}.",
    ]
    some = "all" if tried == count else f"{tried:,} of"
    table = Table(title=f"Dry run: {some} {count:,} videos tried", title_justify="left")
    table.add_column("", style="bold")
    for one in estimate.codecs:
        rest = " ".join(f"{key} {value}" for key, value in one.codec.items() if key != "name")
        table.add_column(f"{cell(one.codec['name'])}\n{cell(rest)}", justify="right")
    columns = [_estimate_cells(one, estimate) for one in estimate.codecs]
    for label in columns[0]:
        if label == "videos refused":
            table.add_section()
        table.add_row(label, *(column[label] for column in columns))
    return with_notes(table, notes)


def _estimate_cells(one: CodecEstimate, estimate: DryRunEstimate) -> dict[str, str]:
    def number(form: Callable[[CodecMetrics], str]) -> str:
        return "-" if one.metrics is None else form(one.metrics)

    def between(text: Callable[[float], str], interval: tuple[float, float] | None) -> str:
        sure = interval is None or estimate.tried == estimate.videos
        return "" if interval is None or sure else f"\n{text(interval[0])} to {text(interval[1])}"

    def quality(value: float | None, form: str, unit: str = "") -> str:
        return "exact" if one.untouched else "-" if value is None else f"{value:{form}}{unit}"

    refused = sum(one.refused.values()) / estimate.tried
    hands = f"{estimate.workers} {'worker' if estimate.workers == 1 else 'workers'}"
    return {
        "total size": number(lambda f: byte_text(f.total_bytes) + between(byte_text, f.total_bytes_95)),
        f"total time, {hands}": duration_text(one.total_seconds) + between(duration_text, one.total_seconds_95),
        "total video": number(lambda f: duration_text(3600 * f.total_hours)),
        "videos refused": f"{refused:.1%}" if refused else "none",
        "size per video": number(lambda f: byte_text(f.bytes_per_video)),
        "size per frame": number(lambda f: byte_text(f.bytes_per_frame)),
        "size / source": number(lambda f: f"{f.source_ratio:.2f} x"),
        "bit rate": number(lambda f: f"{f.bits_per_second / 1e6:.2f} Mbit/s"),
        "CPU time per video": duration_text(one.cpu_seconds),
        "PSNR": number(lambda f: quality(f.psnr, ".1f", " dB")),
        "SSIM": number(lambda f: quality(f.ssim, ".4f")),
        "frames per group": number(lambda f: f"{f.group_frames:.0f}"),
        "bytes read per sample": number(lambda f: byte_text(f.read_bytes)),
        "bytes read / used": number(lambda f: f"{f.read_amplification:.2f}"),
        "frames decoded / used": number(lambda f: f"{f.decode_amplification:.2f}"),
        "--samples-per-shard": number(lambda f: f"{f.samples_per_shard}"),
    }
