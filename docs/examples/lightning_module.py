"""Lightning: `python lightning_module.py SHARDS STEPS` trains up to step STEPS, or goes on up to it."""

import sys

import lightning
import torch
from contrast import Contrast

import rhofast


class Pretraining(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = Contrast()

    def train_dataloader(self):  # called when the ranks are known
        return rhofast.clips(sys.argv[1], num_frames=4, frame_stride=4, size=32, batch_size=4)

    def training_step(self, views, _):
        return self.network(**views)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


saving = lightning.pytorch.callbacks.ModelCheckpoint("lightning_module", every_n_train_steps=5, save_last=True)
trainer = lightning.Trainer(max_steps=int(sys.argv[2]), callbacks=[saving], logger=False)
trainer.fit(Pretraining(), ckpt_path="last")
trainer.train_dataloader.close()
