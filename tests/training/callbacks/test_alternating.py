"""Alternating training of parts of a model."""

import pytest
import torch

from regnet_lab import losses
from regnet_lab.errors import UserError
from regnet_lab.models import FAIM, ResidualRefinement
from regnet_lab.ops import similarity
from regnet_lab.training.callbacks import AlternatingTraining
from regnet_lab.training.module import RegistrationModule
from tests.helpers.training import fit


class Taught(AlternatingTraining):
    """Records which parts of the model changed in every epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        super().on_train_epoch_start(trainer, pl_module)
        self.before = {k: p.detach().clone() for k, p in pl_module.model.named_parameters()}

    def on_train_epoch_end(self, trainer, pl_module):
        changed = {
            k for k, p in pl_module.model.named_parameters() if not torch.equal(p, self.before[k])
        }
        self.taught = [*getattr(self, "taught", []), {k.split(".")[0] for k in changed}]


def refined_module(detached=True):
    model = ResidualRefinement(FAIM(2, (3, 2), 2, 4, flow_init_std=0.1), 2, 4, detached)
    terms = {
        "similarity": losses.DeepSupervision(losses.Similarity(similarity.mean_squares), [1, 1]),
        "smoothness": losses.DeepSupervision(losses.Diffusion(), [1, 4], weight=0.01),
    }
    return RegistrationModule(model, terms, lambda p: torch.optim.Adam(p, 1e-2))


def test_parts_are_trained_alternately_in_every_round():
    callback, module = Taught({"model": 2, "refinement": 1}), refined_module()
    fit(module, 5, callback)
    assert callback.taught == [{"model"}, {"model"}, {"refinement"}, {"model"}, {"model"}]
    assert all(p.requires_grad for p in module.parameters())


def test_parameters_frozen_before_stay_frozen():
    module = refined_module()
    module.model.model.flow.bias.requires_grad_(False)
    before = module.model.model.flow.bias.clone()
    fit(module, 2, AlternatingTraining({"model": 1, "refinement": 1}))
    assert not module.model.model.flow.bias.requires_grad
    assert torch.equal(module.model.model.flow.bias, before)


def test_the_published_rounds_are_three_and_four_epochs():
    turns = [
        AlternatingTraining({"model": 3, "refinement": 4}).get_active_part(epoch)
        for epoch in range(21)
    ]
    assert turns == 3 * (3 * ["model"] + 4 * ["refinement"])


def test_a_part_that_does_not_exist_is_named():
    with pytest.raises(UserError, match=r"head.*ResidualRefinement.*model, refinement"):
        fit(refined_module(), 1, AlternatingTraining({"head": 1}))
