"""What is to be evaluated, opened and checked: a backbone, labeled training shards, held-out test shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.sources import open_shards
from rhofast.errors import ConfigError, RhofastError
from rhofast.evaluation.leakage import check_held_out, overlap, refuse_overlap
from rhofast.evaluation.model import EvalModel, open_model
from rhofast.evaluation.scores import class_map


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalTask:
    """notes: sentences that a reader of the result must not miss."""

    subject: EvalModel
    train: ShardSet
    test: ShardSet
    notes: tuple[str, ...]

    @property
    def config(self) -> Config:
        return self.subject.config

    def shards(self) -> dict[str, Any]:
        """What was trained and tested on, for a file about it."""
        return {
            name: {"where": one.where, "name": one.info.name, "digest": one.info.digest, "samples": len(one)}
            for name, one in (("train", self.train), ("test", self.test))
        }


def open_task(
    source: str | Path,
    test: str | Path,
    *,
    train: str | Path | None = None,
    page: Path | None = None,
    overrides: Sequence[str] = (),
    allow_overlap: bool = False,
) -> EvalTask:
    """source: any backbone, see `open_model`. test: held-out shards, a folder or an address. train: labeled training
    shards; None: those of the run, of several sets the first. page: a recipe. allow_overlap: test samples may come from
    videos that are in the training shards, or in what the run was trained on; where that cannot be opened any more, a
    note says that it was not compared.

    Raises ConfigError (also for sets whose classes do not fit), ResumeError, ShardError.
    """
    subject = open_model(source, page=page, overrides=overrides)
    config = subject.config
    sources = config.data.train or (subject.run.data.train if subject.run else ())
    if train is None and not sources:
        raise ConfigError("no training shards", hint="give labeled ones with --train")
    opened = open_shards(train or sources[0].shards, data=config.data)
    held_out = open_shards(test, data=config.data)
    class_map(opened, held_out)
    notes = check_held_out([opened], held_out, allow=allow_overlap)
    notes += _against_pretraining(subject, opened, held_out, allow=allow_overlap)
    return EvalTask(subject=subject, train=opened, test=held_out, notes=notes)


def placed(network: nn.Module, config: Config) -> nn.Module:
    """A network on this process's device, its weights lying as the configuration says."""
    network = network.to(PartialState(cpu=not torch.cuda.is_available()).device)
    return network.to(memory_format=torch.channels_last_3d) if config.train.channels_last else network


def _against_pretraining(subject: EvalModel, train: ShardSet, test: ShardSet, *, allow: bool) -> tuple[str, ...]:
    """As check_held_out, of the sets that a run was trained on, but for `train`."""
    notes: list[str | None] = []
    for source in subject.run.data.train if subject.run else ():
        try:
            opened = open_shards(source.shards, check_files=False, data=subject.config.data)
            common = [] if opened.info.digest == train.info.digest else overlap(opened, test)
        except (RhofastError, OSError) as error:
            why = error.message if isinstance(error, RhofastError) else str(error)
            notes.append(f"test videos were not compared with those that the run was trained on: {why}")
        else:
            notes.append(refuse_overlap(opened.where, common, test, allow=allow))
    return tuple(note for note in notes if note is not None)
