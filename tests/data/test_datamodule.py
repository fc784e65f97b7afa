"""Batches of pairs."""

import torch

from regnet_lab.data.datamodule import PairDataModule


class LabelledPairs(torch.utils.data.Dataset):
    """Two pairs whose label maps have different integer types."""

    dtypes = (torch.int16, torch.int32)
    ids = (5, 614454277)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        labels = torch.full((1, 4, 5), self.ids[index], dtype=self.dtypes[index])
        image = torch.zeros(1, 4, 5)
        pair = {"fixed": image, "moving": image, "spacing": torch.ones(2), "name": str(index)}
        return pair | {"fixed_labels": labels, "moving_labels": labels}


def test_label_maps_of_different_types_form_a_batch():
    for workers in (0, 1):
        data = PairDataModule(lambda split: LabelledPairs(), batch_size=2, num_workers=workers)
        (batch,) = list(data.train_dataloader())
        for key in ("fixed_labels", "moving_labels"):
            assert batch[key].dtype == torch.int32
            assert sorted(batch[key][:, 0, 0, 0].tolist()) == [5, 614454277]
