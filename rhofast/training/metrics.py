"""What the lines of metrics.jsonl mean: the kinds of lines, and every number by its name, with its unit.

The logger reads here how a number is combined over the ranks; the live view and the report read labels and units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STEP_PHASES = ("data", "forward", "backward", "optimizer", "other")  # what the time of a step goes to

LINE_KINDS = {
    "start": "A process begins or continues the run: the machine, the model, the data, who decodes what.",
    "step": "Numbers of one window of train.log_steps steps.",
    "knn": "Accuracy of kNN on held-out videos. METRICS and the trackers prefix its numbers with `knn_`.",
    "validation": "Score of a classifier or detector on held-out videos while it is trained. METRICS and the trackers "
    "have its `score` as `validation_score`.",
    "test": "The same of the test at the end, as `test_score`.",
    "checkpoint": "A checkpoint is on the disk: how long training was held up, and how long the writing took.",
    "warning": "Something looks wrong: collapsed embeddings, a step that is not finite, an unwritten checkpoint.",
    "advice": "What limits the loader, and what to change: once if steps wait for data, and at the end.",
    "note": "What a user should know of a continued run, for example a changed setting.",
    "stop": "The run ends before its last step, and why.",
    "error": "The run has failed, and why.",
}

OverRanks = Literal["mean", "sum", "max", "min"]
Only = Literal["", "cuda", "distributed", "fine-tuning", "MoCo", "LeJEPA", "six or more classes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A number in the lines of a run's metrics.

    Attributes:
        name: Its key in a line and in the trackers; `{n}` stands for a number.
        label: A short name for people.
        unit: Its unit, or "" if it has no dimension.
        meaning: What it measures, in one sentence.
        high: What a high value means, in one sentence.
        low: What a low value means, in one sentence.
        over_ranks: How the values of the ranks become one.
        only: The kind of run that has it; "" if every run may.
    """

    name: str
    label: str
    unit: str
    meaning: str
    high: str
    low: str
    over_ranks: OverRanks = "mean"
    only: Only = ""


_PHASES = {
    "data": "until its batch is there",
    "forward": "in forward passes",
    "backward": "in backward passes, with the exchange of gradients",
    "optimizer": "in the norm of the gradients and the update of the weights",
    "other": "in nothing of these: logging, agreeing with other ranks",
}

_ALL = (
    Metric(
        name="step",
        label="step",
        unit="steps",
        meaning="Optimizer steps done since the run began.",
        high="The run is near its end.",
        low="The run is near its beginning.",
    ),
    Metric(
        name="epoch",
        label="epoch",
        unit="epochs",
        meaning="Steps done, divided by the steps of one pass through the training data.",
        high="The run is near its end.",
        low="The run is near its beginning.",
    ),
    Metric(
        name="seconds",
        label="elapsed",
        unit="s",
        meaning="Wall time since this process began.",
        high="The process has run for long.",
        low="The process has just begun or has just been resumed.",
    ),
    Metric(
        name="loss",
        label="loss",
        unit="",
        meaning="The loss of the window's last step, summed over the passes of the method.",
        high="The method's task is not solved yet; values of different methods cannot be compared.",
        low="The task is solved well, or the embeddings have collapsed: look at feature_std.",
    ),
    Metric(
        name="loss_pass{n}",
        label="loss of pass {n}",
        unit="",
        meaning="The share of the loss that belongs to one pass, for methods with several.",
        high="The query clip of this pass is matched worse than the others.",
        low="The query clip of this pass is matched better than the others.",
    ),
    Metric(
        name="lr",
        label="learning rate",
        unit="",
        meaning="The learning rate of the window's last step.",
        high="The schedule is near its peak, after warm-up.",
        low="The schedule is in warm-up or near its end.",
    ),
    Metric(
        name="grad_norm",
        label="gradient norm",
        unit="",
        meaning="The L2 norm of all gradients together, before clipping.",
        high="Training may be unstable: a lower optim.base_lr, a longer warm-up or optim.clip helps.",
        low="The weights barely move.",
    ),
    Metric(
        name="feature_std",
        label="embedding spread",
        unit="",
        meaning="The standard deviation of normalized embeddings over the batch, scaled to 1 for a uniform sphere.",
        high="Near 1 the embeddings are spread over the sphere.",
        low="Near 0 all embeddings are one point: the run has collapsed.",
    ),
    Metric(
        name="contrast_top1",
        label="own clip found",
        unit="",
        meaning="Share of queries, in [0, 1], to which their own video's key is nearest (MoCo and MoCo v3).",
        high="The task is solved: more videos per step, a longer queue or more augmentation makes it harder.",
        low="The network does not tell videos apart yet.",
        only="MoCo",
    ),
    Metric(
        name="invariance_loss",
        label="distance to the mean",
        unit="",
        meaning="The mean square of what separates a clip's embedding from the mean of its video.",
        high="The clips of a video have different embeddings.",
        low="The clips of a video have the same embedding; it is good only while sigreg_loss is low, too.",
        only="LeJEPA",
    ),
    Metric(
        name="sigreg_loss",
        label="distance from a Gaussian",
        unit="",
        meaning="How far the embeddings of a batch are from an isotropic Gaussian (SIGReg).",
        high="The embeddings are of another scale, gather in few directions or have collapsed.",
        low="Near 1 and below the embeddings are like draws from the Gaussian.",
        only="LeJEPA",
    ),
    Metric(
        name="ema_momentum",
        label="momentum of the momentum network",
        unit="",
        meaning="The share that the momentum network keeps of itself in a step, for methods that have one.",
        high="The momentum network follows slowly.",
        low="The momentum network follows fast.",
    ),
    Metric(
        name="clips_per_second",
        label="speed",
        unit="clips/s",
        meaning="Clips that all ranks together train on, per second of wall time.",
        high="The run is fast.",
        low="The run is slow: data_wait_share and the phases of a step say where the time goes.",
        over_ranks="sum",
    ),
    Metric(
        name="step_seconds",
        label="time of a step",
        unit="s",
        meaning="Wall time per step.",
        high="Steps are slow.",
        low="Steps are fast.",
    ),
    *(
        Metric(
            name=f"{phase}_seconds",
            label=f"{phase} phase",
            unit="s",
            meaning=f"Time per step {_PHASES[phase]}: of the host on a CPU, of the device on CUDA.",
            high="The device has nothing to do until a batch comes." if phase == "data" else "The phase is expensive.",
            low="Batches are there in time." if phase == "data" else "The phase is cheap.",
        )
        for phase in STEP_PHASES
    ),
    Metric(
        name="communication_seconds",
        label="exposed communication",
        unit="s",
        meaning="Time per step in which this rank's gradients are ready and those of all ranks are not.",
        high="The network or a slow rank holds all ranks up.",
        low="The exchange of gradients is hidden behind the backward pass.",
        only="distributed",
    ),
    Metric(
        name="data_wait_share",
        label="data wait",
        unit="",
        meaning=(
            "Share of the window, in [0, 1], in which the device has nothing to do because the batch is not there. On "
            "CUDA it is read from events in the device's stream."
        ),
        high="The loader does not keep up on some rank: `advice` lines name its slowest stage.",
        low="The device never waits for video.",
        over_ranks="max",
    ),
    Metric(
        name="host_blocked_share",
        label="host blocked",
        unit="",
        meaning=(
            "Share of the window, in [0, 1], in which the training thread is blocked in next(loader). On a CPU it is "
            "data_wait_share."
        ),
        high="On CUDA, by itself, nothing: the host runs ahead and waits while the device works.",
        low="Batches are ready when the host asks for them.",
        over_ranks="max",
    ),
    Metric(
        name="readiness",
        label="readiness",
        unit="",
        meaning="Share of the window, in [0, 1], in which the loader did not keep its consumer waiting.",
        high="Near 1 a faster loader would not help.",
        low="The loader is the limit: `advice` lines name its slowest stage.",
        over_ranks="min",
    ),
    Metric(
        name="memory_bytes",
        label="memory",
        unit="bytes",
        meaning="Resident memory of a process.",
        high="The host may run out of memory: take a smaller data.prefetch.",
        low="There is room for more prefetching.",
        over_ranks="max",
    ),
    Metric(
        name="device_memory_bytes",
        label="device memory",
        unit="bytes",
        meaning=(
            "Device memory that is in use when the line is written, by all libraries and processes: PyTorch, with what "
            "it keeps for reuse, DALI and NVDEC."
        ),
        high="The device may run out of memory: use train.checkpoint_activations or a smaller train.batch_size.",
        low="There is room for a larger train.batch_size.",
        over_ranks="max",
        only="cuda",
    ),
    Metric(
        name="torch_memory_bytes",
        label="PyTorch's device memory",
        unit="bytes",
        meaning="The most device memory that PyTorch's tensors have taken at one time since the process began.",
        high="Activations and weights take the memory: use train.checkpoint_activations.",
        low="If device_memory_bytes is high, decoding takes the memory: take a smaller data.prefetch.",
        over_ranks="max",
        only="cuda",
    ),
    Metric(
        name="bad_samples",
        label="bad samples",
        unit="samples",
        meaning="Samples that could not be used since the process began; bad_samples.jsonl names them.",
        high="The shards are damaged: `rhofast verify` says where.",
        low="The shards are sound.",
        over_ranks="max",
    ),
    Metric(
        name="top1",
        label="training top-1",
        unit="",
        meaning="Share of the window's training videos, in [0, 1], whose class the classifier gets right; of several "
        "labels, one of those that hold.",
        high="The classifier fits its training videos.",
        low="The classifier does not fit its training videos yet.",
        only="fine-tuning",
    ),
    Metric(
        name="validation_score",
        label="validation score",
        unit="",
        meaning="Top-1 accuracy or mAP on a part of the held-out set, in [0, 1], while a classifier is trained.",
        high="The classifier generalizes; nothing is chosen by it.",
        low="The classifier has not learned yet, or fits its training videos alone: compare top1.",
        only="fine-tuning",
    ),
    Metric(
        name="test_score",
        label="test score",
        unit="",
        meaning="Top-1 accuracy or mAP of the test after the last step, in [0, 1].",
        high="The classifier generalizes.",
        low="The classifier does not generalize: compare validation_score and top1.",
        only="fine-tuning",
    ),
    Metric(
        name="knn_top1",
        label="kNN top-1",
        unit="",
        meaning="Share of the held-out videos, in [0, 1], whose class kNN ranks first.",
        high="The features tell the classes apart.",
        low="The features tell little about the classes; chance is the share of the most frequent one.",
    ),
    Metric(
        name="knn_top5",
        label="kNN top-5",
        unit="",
        meaning="Share of the held-out videos, in [0, 1], whose class kNN ranks among the first five.",
        high="The features tell the classes apart.",
        low="The features tell little about the classes; chance is the share of the five most frequent ones.",
        only="six or more classes",
    ),
    Metric(
        name="knn_samples",
        label="held-out videos",
        unit="samples",
        meaning="Held-out videos that were tested; those that could not be read are left out.",
        high="The accuracy is precise.",
        low="The accuracy is uncertain.",
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
