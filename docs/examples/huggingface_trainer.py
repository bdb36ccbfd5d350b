"""transformers.Trainer: `python huggingface_trainer.py SHARDS STEPS` trains up to step STEPS, or goes on up to it."""

import sys
from pathlib import Path

import torch
from contrast import Contrast
from transformers import Trainer, TrainerCallback, TrainingArguments

import rhofast


class ClipTrainer(Trainer):
    def get_train_dataloader(self):
        return self.train_dataset  # as it is: its items are batches, and it knows the ranks


class LoaderState(TrainerCallback):
    def on_save(self, args, state, control, train_dataloader, **_):
        if state.is_world_process_zero:  # the loader's state is the same on every rank
            torch.save(train_dataloader.state_dict(), out / f"checkpoint-{state.global_step}" / "loader.pt")


out, steps = Path("huggingface_trainer"), int(sys.argv[2])
arguments = TrainingArguments(out, max_steps=steps, save_steps=5, ignore_data_skip=True)
with rhofast.clips(sys.argv[1], num_frames=4, frame_stride=4, size=32, batch_size=4) as loader:
    last = max(out.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime, default=None)
    if last is not None:
        loader.load_state_dict(torch.load(last / "loader.pt"))
    ClipTrainer(Contrast(), arguments, train_dataset=loader, callbacks=[LoaderState()]).train(last)
