"""What all training loops have alike: the state that checkpoints hold, and what is kept when the data end."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rhofast.checkpoint.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from rhofast.config.load import parse_config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.errors import ConfigError, ShardMissingError
from rhofast.evaluation.scores import Evaluation
from rhofast.training.classify import train_classifier
from rhofast.training.loop import TrainingLoop
from tests.training.test_finetune import task


def loop(scaler: torch.amp.GradScaler | None) -> TrainingLoop:
    """Return a loop of a linear layer, without data."""
    made = TrainingLoop.__new__(TrainingLoop)
    made.config = parse_config({"name": "x", "train": {"steps": 9}, "data": {"train": "shards"}}, where="test")
    made.network, made.step, made.steps = nn.Linear(2, 2), 0, 9
    optimizer = torch.optim.SGD(made.network.parameters(), lr=0.1)
    parts: dict[str, Any] = {
        "accelerator": SimpleNamespace(scaler=scaler),
        "optimizer": SimpleNamespace(optimizer=optimizer),
        "loader": SimpleNamespace(state_dict=lambda: {"position": 3}, load_state_dict=lambda state: None),
    }
    vars(made).update(parts)
    return made


def test_a_loss_scale_goes_on_where_it_was(tmp_path: Path) -> None:
    before, after = loop(torch.amp.GradScaler("cpu", init_scale=8.0)), loop(torch.amp.GradScaler("cpu"))
    before.step = 4
    taken: Checkpoint = before._checkpoint()
    after.restore(load_checkpoint(save_checkpoint(tmp_path, taken, keep=1)))
    assert after.step == 4 and after.accelerator.scaler is not None
    assert after.accelerator.scaler.get_scale() == 8.0
    assert torch.equal(before.network.weight, after.network.weight)  # type: ignore[arg-type]
    loop(None).restore(taken)  # a run in another precision has none


@pytest.mark.usefixtures("one_thread")
def test_an_error_of_the_data_costs_a_classifier_no_step(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_classifier(task(shards, held_out, tmp_path, "name=whole", "train.steps=4"), kind="finetune")
    settings = ("name=parts", "train.steps=4")
    with monkeypatch.context() as patch:
        calls: Iterator[int] = iter(range(9))
        real = TrainLoader.__next__

        def fail(self: TrainLoader) -> Any:
            if next(calls) == 2:
                raise ShardMissingError("the disk is gone")
            return real(self)

        patch.setattr(TrainLoader, "__next__", fail)
        with pytest.raises(ShardMissingError):
            train_classifier(task(shards, held_out, tmp_path, *settings), kind="finetune")
    saved = latest_checkpoint(tmp_path / "runs/random/evals/parts")
    assert saved is not None and load_checkpoint(saved).step == 2
    parts = train_classifier(task(shards, held_out, tmp_path, *settings), kind="finetune", resume=True)
    assert isinstance(whole, Evaluation) and isinstance(parts, Evaluation) and parts.trained == whole.trained


@pytest.mark.usefixtures("one_thread")
def test_a_record_that_cannot_be_written_is_a_config_error(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rhofast.training.begun_with.write_atomically", full)
    with pytest.raises(ConfigError, match=r"task\.json: No space left on device"):
        train_classifier(task(shards, held_out, tmp_path), kind="finetune")
