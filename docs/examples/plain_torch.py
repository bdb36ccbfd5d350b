"""Plain torch: `python plain_torch.py SHARDS STEPS` makes STEPS steps; run again, it goes on where it stopped."""

import sys
from pathlib import Path

import torch
from contrast import Contrast

import rhofast

shards, steps, checkpoint = sys.argv[1], int(sys.argv[2]), Path("plain_torch.pt")
with rhofast.clips(shards, num_frames=4, frame_stride=4, size=32, batch_size=4) as loader:
    network = Contrast().to(loader.device)  # batches are there already
    optimizer = torch.optim.AdamW(network.parameters())
    parts = {"network": network, "optimizer": optimizer, "loader": loader}
    if checkpoint.exists():
        for name, state in torch.load(checkpoint).items():
            parts[name].load_state_dict(state)
    for _ in range(steps):  # or by epochs: for views in loader
        loss = network(**next(loader))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
