"""Accelerate: `accelerate launch accelerate_loop.py SHARDS STEPS` makes STEPS steps; run again, it goes on."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from contrast import Contrast

import rhofast

shards, steps, checkpoint = sys.argv[1], int(sys.argv[2]), Path("accelerate_loop")
accelerator = Accelerator()  # first: from then on the ranks are known
with rhofast.clips(shards, num_frames=4, frame_stride=4, size=32, batch_size=4) as loader:
    network = Contrast()
    network, optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters()))  # without the loader
    accelerator.register_for_checkpointing(loader)
    if checkpoint.exists():
        accelerator.load_state(checkpoint)
    for _ in range(steps):
        loss = network(**next(loader))["loss"]
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    accelerator.save_state(checkpoint)
accelerator.end_training()
