"""The page that describes a run: frozen models, strict TOML, `--set key.path=value`.

Every key has one place and one type. An unknown key, a wrong type or a value out of range is refused before anything
is opened, with the nearest known key as a suggestion. What a section means is said where it is used: `clips` in
data/clips.py, `augment` in data/augment.py, `optim` in optim.py, and so on. A method and a backbone bring their own
options (`Section` classes beside their code), so this module knows no method's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator

from rhofast.config.section import Count, Finite, PathField, Positive, Probability, Range, Section, Triple


class SourceConfig(Section):
    """One shard set to train on.

    shards  its folder, or its address (`https://...`, `s3://...`, `file:///...`), as typed
    weight  its share of the training samples is weight / sum of all weights
    """

    shards: str = Field(min_length=1)
    weight: Annotated[Finite, Field(gt=0)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _text_is_a_set(cls, value: Any) -> Any:
        return {"shards": str(value)} if isinstance(value, str | Path) else value


class DataConfig(Section):
    """Where the shards are and how many hands read them.

    train         the training shards: one folder or address, or a list of `{shards = ..., weight = ...}`; () for none
    test          the held-out shards for the kNN check during training, a folder or an address, or None. The first of
                  the training sets is what they are compared with
    block_shards  shuffle samples within blocks of this many shards (the shards are shuffled too), so that only about
                  two blocks are needed at a time: for remote sets that the cache cannot hold. None: over the whole set
    lanes         each takes an equal part of every batch from shards that are its own for an epoch, so that a node
                  fetches and caches those of its lanes alone: for remote sets, as many as nodes or a multiple. Divides
                  train.batch_size. 1: any sample may stand anywhere
    fixed_lanes   lanes have the same samples in every epoch: a node whose cache holds its lanes fetches each shard once
                  in a run, not once an epoch
    threads       reading threads; decoder threads are `decode_threads`
    prefetch      batches that may wait in each queue
    max_bad       share of bad samples past which the run stops
    timeout_s      seconds that reading or decoding one batch may take before the run ends with an error
    decoder       who decodes streams of video: "nvdec" (on the GPU), "host", or whichever of the two is to be had
    hw_decoder_load  share of stored pictures that a GPU's JPEG engines decode, where it has some
    cache         folder of this node's copies of remote shards, best on a local disk. None: `rhofast-cache-UID` in the
                  folder for temporary files ($TMPDIR, else /tmp)
    cache_gb      bound of what lies there, GB
    downloads     shards of a set that one process downloads at the same time, ahead of their use
    """

    train: Annotated[tuple[SourceConfig, ...], Field(strict=False)] = ()
    test: Annotated[str, Field(min_length=1)] | None = None
    block_shards: Count | None = None
    lanes: Count = 1
    fixed_lanes: bool = False
    threads: Count = 4
    decode_threads: Count = 2
    prefetch: Count = 2
    max_bad: Probability = 0.01
    timeout_s: Positive = 600.0
    decoder: Literal["auto", "host", "nvdec"] = "auto"
    hw_decoder_load: Probability = 0.65
    cache: PathField | None = None
    cache_gb: Positive = 50.0
    downloads: Count = 4

    @field_validator("train", mode="before")
    @classmethod
    def _one_set_needs_no_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path | Mapping) else value

    @field_validator("test", mode="before")
    @classmethod
    def _path_is_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("train")
    @classmethod
    def _each_set_once(cls, value: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        named = [source.shards for source in value]
        twice = [shards for number, shards in enumerate(named) if shards in named[:number]]
        if twice:
            raise ValueError(f"{twice[0]} is given twice: give it once, with a larger weight")
        return value

    @model_validator(mode="after")
    def _lanes_are_fixed_where_there_are_some(self) -> Self:
        if self.fixed_lanes and self.lanes == 1:
            raise ValueError("fixed_lanes without lanes: there is one, of the whole set")
        return self

    @field_serializer("train")
    def _as_typed(self, value: tuple[SourceConfig, ...]) -> str | list[dict[str, Any]]:
        """One set without a weight is its text again."""
        if len(value) == 1 and value[0].weight == 1:
            return value[0].shards
        return [source.model_dump() for source in value]


class ClipConfig(Section):
    """Temporal geometry: `num_clips` (rho) clips of `num_frames` (T) frames, `frame_stride` (tau) apart at `fps`.

    num_clips   any number; 1 means two augmentations of the same frames
    fps_jitter  for each video `fps` is multiplied by a number drawn from this range: [0.5, 1.5] is the paper's, and
                [1, 1 + J / fps] the release's jitter J. Training only
    rule        how long a clip is: "window", tau * T frames (release), or "stride", the ceiling of tau * (T - 1), as in
                its first version (April 2022). Or "segments": a frame of each of T parts of the whole video; tau and
                `fps` then say nothing
    max_span    a video's clips begin at most so many seconds apart: 0 for the same frames, None for anywhere (release)
    min_gap     at least so much time from a clip's last frame to the next one's first; None: they may overlap (release)
    max_gap     at most so much
    gap_unit    of both: "seconds", or "frames" of the video as stored (release)
    short       a video shorter than a clip: "repeat" its last frame (release), "loop", start again at its first, or
                "spread" the T frames over what there is
    shuffle     give the clips in random order, not in the order of time
    """

    num_clips: Count = 2
    num_frames: Count = 8
    frame_stride: Count = 8
    fps: Positive = 30.0
    fps_jitter: Range = (1.0, 1.0)
    rule: Literal["window", "stride", "segments"] = "window"
    max_span: Annotated[Finite, Field(ge=0)] | None = None
    min_gap: Finite | None = None
    max_gap: Finite | None = None
    gap_unit: Literal["seconds", "frames"] = "seconds"
    short: Literal["repeat", "loop", "spread"] = "repeat"
    shuffle: bool = True

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        low, high = self.fps_jitter
        if not 0 < low <= high < math.inf:
            raise ValueError(f"fps_jitter must be [low, high] with 0 < low <= high, got [{low}, {high}]")
        if self.min_gap is not None and self.max_gap is not None and self.min_gap > self.max_gap:
            raise ValueError(f"min_gap {self.min_gap:g} is above max_gap {self.max_gap:g}")
        if self.rule == "segments" and not (self.max_span is self.min_gap is self.max_gap is None):
            raise ValueError('rule = "segments" shows the whole video: max_span and gaps mean nothing to it')
        return self


class AugmentConfig(Section):
    """Appearance: what one clip's augmentation is drawn from. Defaults are the released configurations'.

    flip, color, gray, blur and difference are probabilities: 0 turns one off and leaves what the others draw.

    crop         "area": by `area` and `aspect`; "short_side": jitter the short side in `short_side`, then crop `size`;
                 "center": the central square, not random
    color        probability of the color jitter, which is `brightness`, `contrast`, `saturation` and `hue`
    blur_sigma   in output pixels
    difference   probability that a clip shows changes in time, in gray: each frame's luma less that of the next frame
                 of the video, halved, about 127.5; before all colors. The paper tries 0.2
    """

    size: Annotated[int, Field(ge=8)] = 224
    crop: Literal["area", "short_side", "center"] = "area"
    area: Range = (0.2, 0.766)
    aspect: Range = (0.75, 1.3333)
    short_side: Range = (256, 320)
    flip: Probability = 0.5
    color: Probability = 0.8
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.6
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.6
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.6
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    gray: Probability = 0.2
    blur: Probability = 0.5
    blur_sigma: Range = (0.1, 2.0)
    difference: Probability = 0.0
    mean: Triple = (0.45, 0.45, 0.45)
    std: Triple = (0.225, 0.225, 0.225)

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("area", "aspect", "short_side", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be [low, high] with 0 < low <= high, got [{low}, {high}]")
        if self.area[1] > 1:
            raise ValueError(f"area is a share of the frame: {self.area[1]} is above 1")
        if self.short_side[0] < self.size and self.crop == "short_side":
            raise ValueError(f"short_side starts at {self.short_side[0]:g}, below size {self.size}")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class ComponentConfig(BaseModel):
    """A method or a backbone: its `name`, and options that its own code declares and checks."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Every key but `name`, as written."""
        return dict(self.model_extra or {})


class OptimConfig(Section):
    """The optimizer and its schedule. The peak rate is `base_lr * train.batch_size / base_batch` (linear scaling).

    schedule        "cosine" to 0 over the run, or "steps": times `decay` from each of `decay_epochs` on
    warmup_epochs   linear from `warmup_lr` (scaled likewise) up to that curve
    clip            gradients are scaled down to this norm, all together, or None (release)
    """

    name: Literal["lars", "sgd", "adamw"] = "lars"
    base_lr: Positive = 0.6
    base_batch: Count = 64
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    betas: Range = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 1e-6
    trust: Positive = 0.001
    schedule: Literal["cosine", "steps"] = "cosine"
    decay_epochs: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    decay: Positive = 0.1
    warmup_epochs: Annotated[float, Field(ge=0)] = 35.0
    warmup_lr: Annotated[float, Field(ge=0)] = 0.001
    clip: Positive | None = None

    @model_validator(mode="after")
    def _steps_are_given(self) -> Self:
        if (self.schedule == "steps") != bool(self.decay_epochs):
            raise ValueError('schedule = "steps" and decay_epochs go together')
        return self


class TrainConfig(Section):
    """The loop. Exactly one of `epochs` and `steps` says how long; `batch_size` is the global batch, in videos.

    accumulate        micro-batches that each rank's share of a batch is split into, for less memory: refused where
                      that would change what is computed
    micro_batch_norm  accept that batch norm then takes its statistics from micro-batches, as if there were `accumulate`
                      times as many ranks with a smaller share each
    channels_last     weights and activations with the channels innermost; the loader's clips lie so already. Off is
                      faster on a CPU with a single thread
    compile           `torch.compile` of backbones and heads: a minute at the start, for a few percent on a CPU
    checkpoint_activations   the backbone's blocks keep only what goes in and are computed again in backward: much less
                      memory for about a quarter more time, with the same result. Not with `compile`
    checkpoint_steps  save every so many steps, in the background, besides at the end and when asked to stop
    keep_checkpoints  how many of the newest stay
    keep_every        those whose step is a multiple of this stay as well; None: no others
    max_bad_steps     so many steps in succession whose loss or gradients are not finite end the run; each of them
                      leaves the weights as they are
    timeout_s         seconds after which a process that waits for another takes it for lost: more than data.timeout_s
    max_hours         save and end after this time
    knn_steps         evaluate by kNN every so many steps, or every `knn_epochs` epochs; None: never
    trackers          where the numbers go besides metrics.jsonl: "tensorboard" (in the run's folder), "wandb"
    profile_steps     [first, last]: write a Chrome trace of these steps of rank 0 to trace.json
    """

    batch_size: Count = 512
    accumulate: Count = 1
    micro_batch_norm: bool = False
    epochs: Positive | None = None
    steps: Count | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    checkpoint_activations: bool = False
    checkpoint_steps: Count = 500
    keep_checkpoints: Count = 3
    keep_every: Count | None = None
    max_bad_steps: Count = 3
    timeout_s: Positive = 900.0
    log_steps: Count = 10
    knn_steps: Count | None = None
    knn_epochs: Positive | None = None
    trackers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Field(strict=False)] = ("tensorboard",)
    profile_steps: Annotated[tuple[Count, Count], Field(strict=False)] | None = None
    max_hours: Positive | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self

    @model_validator(mode="after")
    def _kept_are_saved(self) -> Self:
        if self.keep_every is not None and self.keep_every % self.checkpoint_steps:
            raise ValueError(f"keep_every {self.keep_every} is no multiple of checkpoint_steps {self.checkpoint_steps}")
        return self

    @model_validator(mode="after")
    def _activations_are_kept_one_way(self) -> Self:
        if self.checkpoint_activations and self.compile:
            raise ValueError("checkpoint_activations and compile exclude each other: turn one of them off")
        return self

    @model_validator(mode="after")
    def _telemetry_is_clear(self) -> Self:
        if self.knn_epochs is not None and self.knn_steps is not None:
            raise ValueError("give knn_steps or knn_epochs, not both")
        if self.profile_steps is not None and self.profile_steps[0] > self.profile_steps[1]:
            raise ValueError("profile_steps are the first and the last step, in this order")
        return self


class EvalConfig(Section):
    """Held-out evaluation.

    views         uniform clips of each video, center squares: for kNN, for features, and for training on features
    test_views, test_crops   what a classifier is tested on: so many uniform clips, each in 1 or 3 squares along the
                  long side; its softmax scores are averaged over all of them (release: 10 x 3)
    test_size     pixels a side of these squares, or None for `augment.size` (release: 256 after training with 224)
    batch_size    clips that go through the network at once on each rank
    keep          folder in which features and scores are kept as they come: the same evaluation goes on from there, and
                  another one of the same features begins with them. None: nowhere
    neighbors, temperature   of kNN
    dropout       of what goes into a classifier, while it is trained
    batch_norm    of the backbone while a classifier is trained: "frozen" statistics, or those of the batch, on each
                  rank by itself ("local"), on each node ("node") or over all ranks ("sync"). The release takes batch
                  statistics even where the weights are frozen
    """

    views: Count = 2
    test_views: Count = 10
    test_crops: Literal[1, 3] = 3
    test_size: Annotated[int, Field(ge=8)] | None = None
    batch_size: Count = 64
    keep: PathField | None = None
    neighbors: Count = 200
    temperature: Positive = 0.1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch_norm: Literal["frozen", "local", "node", "sync"] = "frozen"


class Config(Section):
    """A whole run. `out` is the folder in which the run folder `name` is made."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    out: PathField = Path("runs")
    data: DataConfig = DataConfig()
    clips: ClipConfig = ClipConfig()
    augment: AugmentConfig = AugmentConfig()
    backbone: ComponentConfig = ComponentConfig(name="slow_r50")
    method: ComponentConfig = ComponentConfig(name="byol")
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig(epochs=200)
    eval: EvalConfig = EvalConfig()

    @property
    def folder(self) -> Path:
        return self.out / self.name
