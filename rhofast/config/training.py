"""The options of the optimizer, the training loop and the evaluations."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from rhofast.config.section import Count, NonNegative, PathField, Positive, Probability, Section, Size

_Decay = Annotated[float, Field(ge=0, lt=1)]

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "aim", "clearml", "swanlab", "dvclive")


def _check_tracker(name: str) -> str:
    """Raise ValueError for a name that is neither a tracker's nor that of code of the user's own."""
    if ":" not in name and name not in TRACKERS:
        known = ", ".join(TRACKERS)
        raise ValueError(
            f"train.trackers={name!r} is not one of {known}, nor a class of your own (package.module:Class or "
            "path/to/file.py:Class)."
        )
    return name


_Tracker = Annotated[str, AfterValidator(_check_tracker)]


class OptimConfig(Section):
    """The optimizer and its learning rate schedule."""

    name: Literal["lars", "sgd", "adamw"] = "lars"
    """Optimizer: "lars", "sgd" or "adamw"."""

    base_lr: Positive = 0.6
    """Learning rate for a batch of `base_batch` videos. The peak rate is base_lr * train.batch_size / base_batch
    (linear scaling)."""

    base_batch: Count = 64
    """Batch size, in videos, to which `base_lr` and `warmup_lr` refer."""

    momentum: _Decay = 0.9
    """Momentum of LARS and SGD."""

    nesterov: bool = True
    """Whether LARS and SGD use Nesterov momentum."""

    betas: Annotated[tuple[_Decay, _Decay], Field(strict=False)] = (0.9, 0.999)
    """Decay rates [beta1, beta2] of AdamW's moving averages."""

    weight_decay: NonNegative = 1e-6
    """Weight decay of all parameters except those of normalization layers."""

    trust: Positive = 0.001
    """Trust coefficient of LARS."""

    schedule: Literal["cosine", "steps"] = "cosine"
    """Learning rate schedule: "cosine" decays to 0 over the run, "steps" multiplies by `decay` at each of
    `decay_epochs`."""

    decay_epochs: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    """Epochs from which the rate is multiplied by `decay`, for `schedule = "steps"`."""

    decay: Positive = 0.1
    """Factor by which the rate is multiplied at each of `decay_epochs`."""

    warmup_epochs: NonNegative = 35.0
    """Length of the linear warm-up from `warmup_lr` to the schedule's curve, in epochs. 0: no warm-up."""

    warmup_lr: NonNegative = 0.001
    """Learning rate at the start of the warm-up, for a batch of `base_batch` videos."""

    final_lr: NonNegative = 0.0
    """Learning rate at the end of the cosine schedule, for a batch of `base_batch` videos."""

    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Layer-wise learning rate decay of fine-tuning: each layer of the backbone has this share of the rate of the layer
    after it; the classifier has the whole rate. For backbones that say what their layers are (ViTs, Slow, S3D). 1: one
    rate for all layers."""

    clip: Positive | None = None
    """Maximum norm of the gradients of all parameters together; larger ones are scaled down. None: no clipping
    (released code)."""

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if (self.schedule == "steps") != bool(self.decay_epochs):
            raise ValueError(
                f'optim.schedule="{self.schedule}" does not go with optim.decay_epochs={list(self.decay_epochs)}: '
                'decay_epochs requires schedule="steps", and schedule="steps" requires decay_epochs.'
            )
        if self.final_lr and self.schedule == "steps":
            raise ValueError(f'optim.final_lr={self.final_lr:g} requires optim.schedule="cosine".')
        return self


class TrainConfig(Section):
    """The training loop. Exactly one of `epochs` and `steps` sets its length."""

    batch_size: Annotated[int, Field(ge=1, le=1 << 24)] = 512
    """Number of videos in a batch of all ranks together."""

    accumulate: Count = 1
    """Number of micro-batches into which each rank splits its part of the batch, to save memory. It is refused where
    it would change the result (losses across videos; for batch norm see `micro_batch_norm`). 1: no accumulation."""

    micro_batch_norm: bool = False
    """Whether batch norm may take its statistics from micro-batches when `accumulate` > 1, as if there were
    `accumulate` times as many ranks."""

    epochs: Positive | None = None
    """Length of the run in epochs. None: `steps` sets it."""

    steps: Count | None = None
    """Length of the run in optimizer steps. None: `epochs` sets it."""

    init_from: PathField | None = None
    """File of weights that the backbone begins with, as `rhofast export` and `rhofast import` write it. A resumed run
    does not read it. None: random weights."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Numeric precision: "fp32", or mixed precision in "bf16" or "fp16"."""

    channels_last: bool = True
    """Whether weights and activations are stored channels-last, as the loader's clips are. False is faster on a CPU
    with a single thread."""

    compile: bool = False
    """Whether backbones and heads go through `torch.compile`. It takes about a minute at the start and gains a few
    percent on a CPU."""

    checkpoint_activations: bool = False
    """Whether the backbone's blocks keep only their inputs and recompute their activations in the backward pass: much
    less memory for about a quarter more time, and the same result. Excludes `compile`."""

    checkpoint_steps: Count = 500
    """Number of steps between two checkpoints. A run also saves at its end and when it is asked to stop."""

    keep_checkpoints: Count = 3
    """Number of newest checkpoints that are kept."""

    keep_every: Count | None = None
    """Checkpoints whose step is a multiple of this number are kept for good. It must be a multiple of
    `checkpoint_steps`. None: only the newest are kept."""

    max_bad_steps: Count = 3
    """Number of consecutive steps with a non-finite loss or gradient after which the run stops. Such steps leave the
    weights as they are."""

    timeout_s: Positive = 900.0
    """Seconds after which a process that waits for another one takes it for lost. It must exceed `data.timeout_s`."""

    log_steps: Count = 10
    """Number of steps between two lines of metrics."""

    knn_steps: Count | None = None
    """Number of steps between two kNN evaluations. None: `knn_epochs` decides."""

    knn_epochs: Positive | None = None
    """Number of epochs between two kNN evaluations. None: `knn_steps` decides; if both are None, there are none."""

    trackers: Annotated[tuple[_Tracker, ...], Field(strict=False)] = ("tensorboard",)
    """Where metrics go besides metrics.jsonl: any of "tensorboard" (in the run folder), "wandb", "mlflow", "trackio",
    "comet_ml", "aim", "clearml", "swanlab" and "dvclive", and classes of your own (package.module:Class or
    path/to/file.py:Class). An empty list: nowhere."""

    tracker_project: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "rhofast"
    """Project, or experiment, in which trackers show the run: letters, digits, dots, underscores and hyphens."""

    profile_steps: Annotated[tuple[Count, Count], Field(strict=False)] | None = None
    """First and last step, [first, last], of which rank 0 writes a Chrome trace to trace.json. None: no trace."""

    max_hours: Positive | None = None
    """Hours after which the run saves a checkpoint and ends, so that it can be resumed. None: no limit."""

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("Set exactly one of train.epochs and train.steps.")
        return self

    @model_validator(mode="after")
    def _check_keep_every(self) -> Self:
        if self.keep_every is not None and self.keep_every % self.checkpoint_steps:
            raise ValueError(
                f"train.keep_every={self.keep_every} must be a multiple of "
                f"train.checkpoint_steps={self.checkpoint_steps}."
            )
        return self

    @model_validator(mode="after")
    def _check_activations(self) -> Self:
        if self.checkpoint_activations and self.compile:
            raise ValueError("train.checkpoint_activations=true excludes train.compile=true. Set one of them to false.")
        return self

    @model_validator(mode="after")
    def _check_monitoring(self) -> Self:
        if self.knn_epochs is not None and self.knn_steps is not None:
            raise ValueError("Set train.knn_steps or train.knn_epochs, not both.")
        if self.profile_steps is not None and self.profile_steps[0] > self.profile_steps[1]:
            raise ValueError(f"train.profile_steps={list(self.profile_steps)} must be [first, last], first <= last.")
        return self


class PublishedConfig(Section):
    """A published value of an evaluation's protocol."""

    measure: Annotated[str, Field(min_length=1, max_length=100)] = "top-1"
    """Name of the measure, as the result names it."""

    value: Probability
    """The value, in [0, 1]."""

    of: Annotated[str, Field(max_length=1000)] = ""
    """Whose value it is: the method and what else distinguishes it."""


class EvalConfig(Section):
    """The evaluations on held-out videos."""

    views: Annotated[int, Field(ge=1, le=1024)] = 2
    """Number of uniformly spaced clips per video, each a center square, for kNN, for extracted features and for the
    features that classifiers train on."""

    test_views: Annotated[int, Field(ge=1, le=1024)] = 10
    """Number of uniformly spaced clips per test video of a classifier. Its softmax scores are averaged over all views;
    of several labels per video, the maximum counts (released code: 10)."""

    test_crops: Literal[1, 3] = 3
    """Number of square crops along the long side of each clip of `test_views`: 1 (center) or 3 (released code)."""

    test_size: Size | None = None
    """Side of the test crops in pixels. None: `augment.size` (the released code tests with 256 after training with
    224)."""

    batch_size: Annotated[int, Field(ge=1, le=1 << 20)] = 64
    """Number of clips per forward pass on each rank."""

    keep: PathField | None = None
    """Folder in which extracted features and scores are kept while they are computed. An interrupted evaluation
    resumes from it, and other evaluations of the same features read them from it. None: nothing is kept."""

    published: Annotated[tuple[PublishedConfig, ...], Field(strict=False)] = ()
    """Published values of this protocol, which results and `rhofast report` show beside the measured ones: a list of
    `{measure = ..., value = ..., of = ...}`. An empty list: none."""

    neighbors: Count = 200
    """Number of neighbors (k) of the kNN classifier."""

    temperature: Positive = 0.1
    """Temperature of the similarity weights of the kNN classifier."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability of a classifier's input during its training. 0: no dropout."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing of a classifier's training: the share of the target that is spread evenly over all classes. 0: no
    smoothing."""

    repeats: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of clips per training video in a batch of a classifier, each with frames and augmentation of its own
    (repeated augmentation). With `clips.max_span=0` all of them show the same frames, as in VideoMAE."""

    box_score: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Least score of the boxes of a person detector that detection trains and tests on (released code: 0.9, paper:
    0.8)."""

    test_boxes: Literal["detected", "truth"] = "detected"
    """Boxes that detection is tested on: those of the person detector ("detected"), or the annotators' ("truth")."""

    probe_rates: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1, max_length=32)] = (
        5e-3,
        3e-3,
        1e-3,
        3e-4,
        1e-4,
    )
    """Peak learning rates of the attentive probes that are trained at once, each with each of `probe_decays`. They
    stand in place of `optim.base_lr`, and scale with the batch as it does."""

    probe_decays: Annotated[tuple[NonNegative, ...], Field(strict=False, min_length=1, max_length=32)] = (
        0.01,
        0.1,
        0.4,
        0.8,
    )
    """Weight decays of the attentive probes, in place of `optim.weight_decay`."""

    probe_heads: Annotated[int, Field(ge=1, le=256)] = 16
    """Number of attention heads of an attentive probe. It must divide the width of a token."""

    probe_clips: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of clips of a video whose tokens an attentive probe reads together, in training and test (V-JEPA 2: 8 for
    Kinetics-400, 2 for Something-Something V2). It must divide `views` and `test_views`. 1: each clip is classified
    alone, and scores are averaged."""

    probe_validation: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of the training videos of each class that attentive probes are not trained on, but compared on."""

    validation_epochs: Positive | None = None
    """Number of epochs between two looks at the held-out set while a classifier or a detector is trained, and once more
    at the end. Nothing is chosen by them: the last step is tested. None: no looks."""

    validation_stride: Count = 1
    """Of the held-out set, validation looks at every so many-th video, by one center clip of each; in detection at the
    key frames whose second it divides (released code: 4)."""

    batch_norm: Literal["frozen", "local", "node", "sync"] = "frozen"
    """Statistics of the backbone's batch norm while a classifier is trained: "frozen" running statistics, or batch
    statistics per rank ("local"), per node ("node") or over all ranks ("sync"). The released code uses batch
    statistics even where the weights are frozen."""
