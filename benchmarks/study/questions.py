"""What the study asks, as plain data: which runs there are, and which cells of which tables they fill.

A run that answers several questions is made once: BYOL with two clips is a point of all six.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

METHODS = {"moco": "MoCo", "byol": "BYOL", "simclr": "SimCLR", "swav": "SwAV"}
CURATED, UNBALANCED, UNCURATED = "curated", "unbalanced", "uncurated"
TEST, TUNING = "test", "tuning"

# What `rhofast shard --recipe motions` makes of each set. The recipe's values were chosen on `tuning` alone: other
# videos with the training videos' textures. No seed is that of the demo's videos.
SETS: dict[str, dict[str, Any]] = {
    CURATED: {"split": "train", "videos": 1024, "seed": 1},
    UNBALANCED: {"split": "train", "videos": 1024, "seed": 3, "balance": "zipf"},
    UNCURATED: {"split": "train", "videos": 1024, "seed": 4, "balance": "zipf", "scenes": 3, "frames": 288},
    TUNING: {"split": "train", "videos": 256, "seed": 2},
    TEST: {"split": "test", "videos": 512, "seed": 1},
}

# Depth: widths at which a video costs about as much to train on.
BACKBONES = {
    "R18": {"backbone.name": "slow_r18", "backbone.width": 16},
    "R50": {"backbone.name": "slow_r50", "backbone.width": 8},
    "R101": {"backbone.name": "slow_r101", "backbone.width": 8},
}
# What is left of the augmentation without clips from other times (T), without crops and flips (S), without colors (C).
WITHOUT = {
    "T": {"clips.num_clips": 1},
    "S": {"augment.crop": "center", "augment.flip": 0.0},
    "C": {"augment.color": 0.0, "augment.gray": 0.0},
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One pretraining. changes: of the page, as (key, value) in order; data: the set that it is trained on."""

    method: str = "byol"
    changes: tuple[tuple[str, Any], ...] = ()
    data: str = CURATED
    seed: int = 0

    @property
    def name(self) -> str:
        """One that a folder may have, and that no other run has."""
        parts = [self.method, *(f"{key.replace('.', '-')}-{value}" for key, value in self.changes)]
        return "_".join([*parts, *([self.data] if self.data != CURATED else []), f"seed-{self.seed}"])


@dataclass(frozen=True, kw_only=True)
class Question:
    """A table: `cells[row, column]` is the run, but for its seed. title: what is asked; paper: what arXiv 2104.14558
    found; across: what the columns are; scale: they are steps of something, not kinds."""

    key: str
    title: str
    paper: str
    across: str
    seeds: int
    scale: bool = False
    cells: dict[tuple[str, str], Run] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        """Rows and columns, in order."""
        rows, columns = (list(dict.fromkeys(cell[side] for cell in self.cells)) for side in (0, 1))
        return rows, columns

    @property
    def one_network(self) -> bool:
        """Whether all runs begin with the same network and see clips of the same shape."""
        changes = {key for run in self.cells.values() for key, _ in run.changes}
        return not changes & {"backbone.name", "clips.num_frames", "clips.frame_stride"}

    def runs(self, seeds: int | None = None) -> Iterable[Run]:
        """Seed by seed, so that an unfinished study has a whole table."""
        for seed in range(seeds or self.seeds):
            for run in self.cells.values():
                yield Run(method=run.method, changes=run.changes, data=run.data, seed=seed)


def changed(values: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Changes in one order, without those that say what the page says already."""
    page = {"clips.num_clips": 2, "backbone.name": "slow_r18", "backbone.width": 16, "clips.num_frames": 8}
    page["clips.frame_stride"] = 2
    return tuple(sorted((key, value) for key, value in values.items() if page.get(key) != value))


def questions() -> list[Question]:
    """All, in the paper's order."""
    rho = {
        (name, f"{clips}"): Run(method=method, changes=changed({"clips.num_clips": clips}))
        for method, name in METHODS.items()
        for clips in (1, 2, 3, 4)
    }
    shapes = [(4, 2), (4, 4), (8, 1), (8, 2), (8, 4), (16, 1)]
    shape = {
        ("BYOL", f"{frames} x {stride}"): Run(
            changes=changed({"clips.num_frames": frames, "clips.frame_stride": stride})
        )
        for frames, stride in shapes
    }
    augmentation = {}
    for method in ("byol", "moco"):
        for kept in ("", "T", "S", "C", "TS", "TC", "SC", "TSC"):
            values: dict[str, Any] = {}
            for letter, off in WITHOUT.items():
                values |= {} if letter in kept else off
            augmentation[METHODS[method], kept or "none"] = Run(method=method, changes=changed(values))
    depth = {("BYOL", name): Run(changes=changed(values)) for name, values in BACKBONES.items()}
    spans = {
        (data, f"{span:g} s" if span is not None else "anywhere"): Run(
            data=data, changes=changed({} if span is None else {"clips.max_span": float(span)})
        )
        for span in (0, 2, 4, 8, None)
        for data in (CURATED, UNCURATED)
        if (data, span) != (CURATED, 8)  # as long as these videos are
    }
    sets = {
        (METHODS[method], data): Run(method=method, data=data)
        for method in ("moco", "byol")
        for data in (CURATED, UNBALANCED, UNCURATED)
    }
    return [
        Question(
            key="rho",
            title="How many clips of a video?",
            paper="More is better for every method, most from one to two; MoCo and BYOL, whose keys come from a moving "
            "average, lead SimCLR and SwAV.",
            across="clips (rho)",
            seeds=3,
            scale=True,
            cells=rho,
        ),
        Question(
            key="shape",
            title="How many frames, how far apart?",
            paper="Longer clips help: 16 x 4 above 8 x 8, in frames of 1/30 s.",
            across="frames x stride, at 12 frames a second",
            seeds=1,
            cells=shape,
        ),
        Question(
            key="augmentation",
            title="Which augmentation?",
            paper="Clips from other times (T) have the largest effect, but for MoCo, where colors (C) have.",
            across="what varies: time (T), crops and flips (S), colors (C)",
            seeds=1,
            cells=augmentation,
        ),
        Question(
            key="depth",
            title="How deep a network?",
            paper="Deeper is better on Kinetics.",
            across="Slow network",
            seeds=1,
            cells=depth,
        ),
        Question(
            key="span",
            title="How far apart in time may two clips of a video begin?",
            paper="The same time costs about five points. On curated videos the whole length is best; on uncurated "
            "ones a limit of some 36 s is, and the whole length is slightly worse.",
            across="at most so far apart",
            seeds=3,
            scale=True,
            cells=spans,
        ),
        Question(
            key="data",
            title="Videos as picked and cut, or as they come?",
            paper="At 240,000 videos MoCo loses next to nothing to unbalanced classes and 2.5 points to uncurated "
            "videos.",
            across="videos",
            seeds=1,
            cells=sets,
        ),
    ]


def all_runs(asked: Iterable[Question], seeds: int | None = None) -> list[Run]:
    """Each run once, question by question."""
    return list({run.name: run for question in asked for run in question.runs(seeds)}.values())
