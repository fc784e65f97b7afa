"""Short trainings on random 2D pairs."""

import torch
from pytorch_lightning import Trainer


class RandomPairs(torch.utils.data.Dataset):
    """Pairs of random 8 x 8 images, the same for the same index."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        f, m = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(index))
        return {"fixed": f, "moving": m, "spacing": torch.ones(2), "name": str(index)}


def fit(module, epochs, *callbacks):
    """Train on two pairs an epoch without logging; return the trainer."""
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(RandomPairs()))
    return trainer
