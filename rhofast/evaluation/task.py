"""Open and check what an evaluation needs: a backbone, labeled training shards, and held-out test shards."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.sources import open_shards, open_source
from rhofast.errors import ConfigError, RhofastError
from rhofast.evaluation.feature_cache import weights_digest
from rhofast.evaluation.leakage import check_held_out, overlap, refuse_overlap
from rhofast.evaluation.model import EvalModel, open_model
from rhofast.evaluation.scores import Evaluation, Scores, class_map, identity_of, without_place
from rhofast.models.convolution_check import check_convolutions, mended_note
from rhofast.models.memory_format import to_channels_last


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalTask:
    """One backbone with the shard sets on which it is trained and tested.

    Attributes:
        model: The backbone and its configuration.
        train: Labeled training shards.
        test: Held-out test shards.
        weights: SHA-256 of the backbone's weights as they were opened.
        notes: Warnings that belong to the result, one sentence each.
    """

    model: EvalModel
    train: ShardSet
    test: ShardSet
    weights: str
    notes: tuple[str, ...]

    @property
    def config(self) -> Config:
        """Return the configuration of the model."""
        return self.model.config

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes that are told apart."""
        return self.train.info.classes

    def result(
        self,
        kind: str,
        trained: Scores,
        *,
        untrained: Scores | None = None,
        settings: Mapping[str, Any],
        chosen: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> Evaluation:
        """Return the result of an evaluation of this task.

        Args:
            kind: One of KINDS (checkpoint/run_folder.py).
            trained: Scores of the backbone.
            untrained: Scores of the same backbone before training, or None.
            settings: Settings of the evaluation, as JSON values; what clips look like is added.
            chosen: What it chose or found by itself, as JSON values. None: nothing.
            folder: Folder of the run in which the result lies. None: that of the model.
        """
        clips, size = self.config.clips, self.config.augment.size
        seen = f"{clips.num_frames} frames, stride {clips.frame_stride} at {clips.fps:g} fps, {size} pixels"
        return Evaluation(
            kind=kind,
            origin=self.model.origin,
            step=self.model.step,
            weights=self.weights,
            folder=folder or self.model.folder,
            trained=trained,
            untrained=untrained,
            classes=self.classes,
            shards=self.shard_facts(),
            settings={**settings, "clips": seen},
            chosen=dict(chosen or {}),
            notes=self.notes,
            published=tuple(value.model_dump() for value in self.config.eval.published),
        )

    @property
    def test_identity(self) -> str:
        """Return eight digits that another test set, another part of it, or other boxes change."""
        return identity_of(without_place(self.shard_facts()["test"]))

    def shard_facts(self) -> dict[str, Any]:
        """Return location, name, split, digest and size of both shard sets, as JSON values for the result file."""
        return {
            name: {
                "where": shards.where,
                "name": shards.info.name,
                "split": shards.info.split,
                "digest": shards.digest,
                "samples": len(shards),
                "of": shards.info.num_samples,
            }
            for name, shards in (("train", self.train), ("test", self.test))
        }


def open_task(
    source: str | Path,
    test: str | Path,
    *,
    train: str | Path | None = None,
    train_keep: str | Path | None = None,
    test_keep: str | Path | None = None,
    config_file: str | Path | None = None,
    overrides: Sequence[str] = (),
    allow_overlap: bool = False,
    labeled: bool = True,
) -> EvalTask:
    """Open a backbone and its shard sets, and check that the test set is held out.

    Args:
        source: Any backbone that `open_model` accepts.
        test: Held-out shards, a folder or an address.
        train: Labeled training shards. None means the first training set of the run, and of it what the run trained on.
        train_keep: File that lists the training samples to use (`open_shards`).
        test_keep: File that lists the test samples to use.
        config_file: Configuration of the evaluation, such as those in configs/eval/.
        overrides: Settings `key=value` that are applied after the configuration file.
        allow_overlap: Whether test samples may come from videos that are in the training shards or in the shards of the
            pretraining run. A note says so instead of an error.
        labeled: Whether videos have labels, whose classes must match. Labels of boxes are not in the shards.

    Returns:
        The task. Where the pretraining shards cannot be opened any more, a note says that they were not compared.

    Raises:
        ConfigError: If no training shards are known, the classes of the sets do not match, or the sets overlap.
        ResumeError: If the checkpoint cannot be read.
        ShardError: If a shard set cannot be opened.
    """
    model = open_model(source, config_file=config_file, overrides=overrides)
    config = model.config
    sources = config.data.train or (model.run.data.train if model.run else ())
    if train is None and not sources:
        raise ConfigError("no training shards are known", hint="pass labeled shards with --train SHARDS")
    keep = train_keep if train or train_keep is not None else sources[0].keep
    opened = open_shards(train or sources[0].shards, keep=keep, data=config.data)
    held_out = open_shards(test, keep=test_keep, data=config.data)
    if labeled:
        class_map(opened, held_out)
    notes = check_held_out([opened], held_out, allow=allow_overlap)
    notes += _against_pretraining(model, opened, held_out, allow=allow_overlap)
    weights = weights_digest(model.backbone)
    return EvalTask(model=model, train=opened, test=held_out, weights=weights, notes=notes)


def placed(network: nn.Module, config: Config) -> nn.Module:
    """Move a network to the device of this process, in the memory format that the configuration asks for.

    On a CPU, a warning says which convolutions use another one, since this processor computes them wrong in that. Call
    it on every rank.

    Args:
        network: The network to move, which takes clips.
        config: Configuration with `train.channels_last` and the clips.

    Returns:
        The network on the device.

    Raises:
        ConfigError: On a CPU, a convolution is wrong in any memory format; on every rank.
    """
    network = network.to(PartialState(cpu=not torch.cuda.is_available()).device)
    network = to_channels_last(network) if config.train.channels_last else network
    clips = config.eval.batch_size
    # On a CPU, evaluations have full precision whatever the configuration says.
    check_convolutions(network, network, config, precision="fp32", clips=clips, gradients=False)
    if (note := mended_note(network)) is not None:
        warnings.warn(note, UserWarning, stacklevel=1)
    return network


def _against_pretraining(model: EvalModel, train: ShardSet, test: ShardSet, *, allow: bool) -> tuple[str, ...]:
    """Compare the test set with the sets of the pretraining run, except for `train`, which is already checked.

    Args:
        model: The model, with its run's configuration where it has one.
        train: Labeled training shards, which are skipped.
        test: Held-out test shards.
        allow: Whether an overlap is a note instead of an error.

    Returns:
        Notes on overlaps and on sets that could not be compared.

    Raises:
        ConfigError: If the sets overlap and `allow` is off.
    """
    notes: list[str | None] = []
    for source in model.run.data.train if model.run else ():
        try:
            opened = open_source(source, check_files=False, data=model.config.data)
            common = [] if opened.digest == train.digest else overlap(opened, test)
        except (RhofastError, OSError) as error:
            why = error.message if isinstance(error, RhofastError) else str(error)
            notes.append(f"Test videos were not compared with the videos of the pretraining run: {why}")
        else:
            notes.append(refuse_overlap(opened.where, common, test, allow=allow))
    return tuple(note for note in notes if note is not None)
