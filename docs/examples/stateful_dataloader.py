"""torchdata: `python stateful_dataloader.py SHARDS STEPS` makes STEPS steps; run again, it goes on."""

import sys
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from contrast import Contrast
from torchdata.stateful_dataloader import StatefulDataLoader

import rhofast

shards, steps, checkpoint = sys.argv[1], int(sys.argv[2]), Path("stateful_dataloader.pt")
with rhofast.clips(shards, num_frames=4, frame_stride=4, size=32, batch_size=4) as loader:
    batches = StatefulDataLoader(loader, batch_size=None)  # items are batches; no workers, no sampler
    network = Contrast().to(loader.device)
    optimizer = torch.optim.AdamW(network.parameters())
    parts = {"network": network, "optimizer": optimizer, "batches": batches}
    if checkpoint.exists():
        for name, state in torch.load(checkpoint).items():
            parts[name].load_state_dict(state)
    for views in islice(chain.from_iterable(repeat(batches)), steps):  # epoch after epoch
        loss = network(**views)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
