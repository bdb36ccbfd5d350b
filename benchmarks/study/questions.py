"""The questions of the study as plain data: the runs, and the table cells that they fill.

A run that answers several questions is made once: BYOL with two clips belongs to all six of the paper.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

METHODS = {"moco": "MoCo", "byol": "BYOL", "simclr": "SimCLR", "swav": "SwAV"}
LATER_METHODS = {"moco_v3": "MoCo v3", "lejepa": "LeJEPA"}  # not in the paper
SLOW, VIT = "slow", "vit"  # study.py has the config of each
NETWORKS = {SLOW: "Slow-R18", VIT: "Tiny vit"}
UNTRAINED = {SLOW: "byol", VIT: "lejepa"}  # the method whose run with two clips evaluates the untrained network, too
CURATED, UNBALANCED, UNCURATED = "curated", "unbalanced", "uncurated"
TEST, TUNING = "test", "tuning"

# Options of `rhofast shard --recipe motions` for each set. They were chosen on `tuning` alone, which has other videos
# with the textures of the training videos. No seed is that of the demo's videos.
SETS: dict[str, dict[str, Any]] = {
    CURATED: {"split": "train", "videos": 1024, "seed": 1},
    UNBALANCED: {"split": "train", "videos": 1024, "seed": 3, "balance": "zipf"},
    UNCURATED: {"split": "train", "videos": 1024, "seed": 4, "balance": "zipf", "scenes": 3, "frames": 288},
    TUNING: {"split": "train", "videos": 256, "seed": 2},
    TEST: {"split": "test", "videos": 512, "seed": 1},
}

# Depth: widths at which training costs about the same per video.
BACKBONES = {
    "R18": {"backbone.name": "slow_r18", "backbone.width": 16},
    "R50": {"backbone.name": "slow_r50", "backbone.width": 8},
    "R101": {"backbone.name": "slow_r101", "backbone.width": 8},
}
# Settings that turn off clips from other times (T), crops and flips (S), and colors (C).
WITHOUT = {
    "T": {"clips.num_clips": 1},
    "S": {"augment.crop": "center", "augment.flip": 0.0},
    "C": {"augment.color": 0.0, "augment.gray": 0.0},
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One pretraining.

    Attributes:
        method: Name of the method.
        changes: Changes of the config, as (key, value) in order.
        data: Name of the training set.
        seed: Seed of the run.
        network: Key of NETWORKS.
    """

    method: str = "byol"
    changes: tuple[tuple[str, Any], ...] = ()
    data: str = CURATED
    seed: int = 0
    network: str = SLOW

    @property
    def name(self) -> str:
        """A unique name that is valid as a folder name."""
        parts = [self.method, *(f"{key.replace('.', '-')}-{value}" for key, value in self.changes)]
        network = [self.network] if self.network != SLOW else []
        return "_".join([*network, *parts, *([self.data] if self.data != CURATED else []), f"seed-{self.seed}"])

    @property
    def evaluates_untrained(self) -> bool:
        """Whether this run evaluates the untrained network of its seed, too."""
        return self == Run(method=UNTRAINED[self.network], network=self.network, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question and its table.

    Attributes:
        key: Name on the command line.
        title: The question.
        across: What the columns are.
        seeds: Number of seeds.
        scale: Whether the columns are steps on a scale and not categories.
        paper: What arXiv 2104.14558 found; None: it does not ask this.
        cells: The run of each (row, column), except its seed.
    """

    key: str
    title: str
    across: str
    seeds: int
    scale: bool = False
    paper: str | None = None
    cells: dict[tuple[str, str], Run] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        """Names of the rows and of the columns, in order."""
        rows, columns = (list(dict.fromkeys(cell[side] for cell in self.cells)) for side in (0, 1))
        return rows, columns

    @property
    def one_network(self) -> bool:
        """Whether all runs start from the same network and use clips of the same shape."""
        changes = {key for run in self.cells.values() for key, _ in run.changes}
        return not changes & {"backbone.name", "clips.num_frames", "clips.frame_stride"}

    @property
    def network(self) -> str:
        """The network of all its runs, a key of NETWORKS."""
        return next(iter(self.cells.values())).network

    def runs(self, seeds: int | None = None) -> Iterable[Run]:
        """Yield the runs seed by seed, so that an unfinished study has a complete table."""
        for seed in range(seeds or self.seeds):
            for run in self.cells.values():
                yield replace(run, seed=seed)


def changed(values: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return changes in a fixed order, without those that are equal to the config."""
    config = {"clips.num_clips": 2, "backbone.name": "slow_r18", "backbone.width": 16, "clips.num_frames": 8}
    config["clips.frame_stride"] = 2
    return tuple(sorted((key, value) for key, value in values.items() if config.get(key) != value))


def questions() -> list[Question]:
    """Return all questions: those of the paper in its order, then those of the video transformer."""
    rho = {
        (name, f"{clips}"): Run(method=method, changes=changed({"clips.num_clips": clips}))
        for method, name in METHODS.items()
        for clips in (1, 2, 3, 4)
    }
    later = {
        (name, f"{clips}"): Run(method=method, network=VIT, changes=changed({"clips.num_clips": clips}))
        for method, name in LATER_METHODS.items()
        for clips in (1, 2, 3, 4)
    }
    keep = {
        ("LeJEPA", f"{share:.0%}"): Run(
            method="lejepa", network=VIT, changes=(("backbone.keep", share),) if share < 1 else ()
        )
        for share in (1.0, 0.5, 0.25)
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
        if (data, span) != (CURATED, 8)  # the length of these videos
    }
    sets = {
        (METHODS[method], data): Run(method=method, data=data)
        for method in ("moco", "byol")
        for data in (CURATED, UNBALANCED, UNCURATED)
    }
    return [
        Question(
            key="rho",
            title="How many clips per video?",
            paper="More clips are better for every method, with the largest gain from one to two; MoCo and BYOL, which "
            "use a momentum network, are better than SimCLR and SwAV.",
            across="clips (rho)",
            seeds=3,
            scale=True,
            cells=rho,
        ),
        Question(
            key="shape",
            title="How many frames, and at what stride?",
            paper="Longer clips help: 16 x 4 is better than 8 x 8, in frames of 1/30 s.",
            across="frames x stride, at 12 frames per second",
            seeds=1,
            cells=shape,
        ),
        Question(
            key="augmentation",
            title="Which augmentation?",
            paper="Clips from other times (T) have the largest effect, except for MoCo, where colors (C) have.",
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
            paper="Clips from the same time lose about five points. On curated videos the whole length is best; on "
            "uncurated ones a limit of about 36 s is best, and the whole length is slightly worse.",
            across="largest distance in time",
            seeds=3,
            scale=True,
            cells=spans,
        ),
        Question(
            key="data",
            title="Curated or uncurated videos?",
            paper="With 240,000 videos, MoCo loses almost nothing with unbalanced classes and 2.5 points with "
            "uncurated videos.",
            across="videos",
            seeds=1,
            cells=sets,
        ),
        Question(
            key="later",
            title="How many clips per video, for a tiny vit and the methods after the paper?",
            across="clips (rho)",
            seeds=3,
            scale=True,
            cells=later,
        ),
        Question(
            key="keep",
            title="What do dropped tokens cost?",
            across="tokens that are kept in training, two clips",
            seeds=3,
            scale=True,
            cells=keep,
        ),
    ]


def all_runs(chosen: Iterable[Question], seeds: int | None = None) -> list[Run]:
    """Return each run once, question by question."""
    return list({run.name: run for question in chosen for run in question.runs(seeds)}.values())
