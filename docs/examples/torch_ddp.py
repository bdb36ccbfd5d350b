"""DDP: `torchrun --nproc-per-node 2 torch_ddp.py SHARDS STEPS` makes STEPS steps; run again, it goes on."""

import sys
from pathlib import Path

import torch
from contrast import Contrast
from torch.nn.parallel import DistributedDataParallel

import rhofast

shards, steps, checkpoint = sys.argv[1], int(sys.argv[2]), Path("torch_ddp.pt")
torch.distributed.init_process_group()
with rhofast.clips(shards, num_frames=4, frame_stride=4, size=32, batch_size=4) as loader:  # 4 over all ranks
    network = DistributedDataParallel(Contrast().to(loader.device))
    optimizer = torch.optim.AdamW(network.parameters())
    parts = {"network": network, "optimizer": optimizer, "loader": loader}
    if checkpoint.exists():
        for name, state in torch.load(checkpoint, map_location=loader.device).items():
            parts[name].load_state_dict(state)
    for _ in range(steps):
        loss = network(**next(loader))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if torch.distributed.get_rank() == 0:  # the loader's state is the same on every rank
        torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
torch.distributed.destroy_process_group()
