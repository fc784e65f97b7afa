"""Lightning module that trains and evaluates any registration model with any sum of losses."""

import logging
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import grad_norm
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from regnet_lab.errors import DivergedError, UserError
from regnet_lab.losses import Loss, compute_objective, inverse_consistency
from regnet_lab.metrics import score_full, score_validation
from regnet_lab.ops.pairs import apply_displacement, cycle_pair, swap_pair
from regnet_lab.types import Pair, Registration
from regnet_lab.utils.distributed import gather_interleaved, raise_on_all_ranks
from regnet_lab.utils.profiling import Profile

Scorer = Callable[[Pair, Tensor], dict[str, float]]
BackwardPair = Callable[[Pair, Registration], Pair]
NONFINITE_CHOICES = ("stop", "skip")
log = logging.getLogger(__name__)
BACKWARD_PAIRS: dict[str, BackwardPair] = {"warped": cycle_pair, "fixed": swap_pair}


class RegistrationModule(LightningModule):
    """A registration model with its losses, optimizer and metrics.

    Args:
        model: ``model(fixed, moving)`` returns displacement fields, coarse to fine.
        losses: Named terms; the objective is the sum of weight times term.
        optimizer: Creates an optimizer from the parameters.
        scheduler: Creates a learning-rate scheduler from the optimizer.  It is stepped every epoch
            or, if its attribute ``interval`` is "step", every training step.
        cycle_weight: Weight of the same objective after registering backward, to the moving image.
        inverse_consistency_weight: Weight of the inverse consistency of the forward and the
            backward field.
        cycle_input: Image that the backward pass registers to the moving image: ``warped`` (Kuang,
            SASHIMI 2019) or ``fixed``.
        metrics: Computes the metrics of a test pair from its displacement.
        nonfinite_loss: ``stop`` the training at a loss or gradient that is not finite, or ``skip``
            the batch: its gradient is then zero.
        name: Name of the method in tables.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Mapping[str, Loss],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        cycle_weight: float = 0.0,
        inverse_consistency_weight: float = 0.0,
        cycle_input: str = "warped",
        metrics: Scorer = score_full,
        nonfinite_loss: str = "stop",
        name: str = "model",
    ) -> None:
        super().__init__()
        if cycle_input not in BACKWARD_PAIRS:
            raise UserError(
                f"cycle_input={cycle_input}: choose one of {', '.join(BACKWARD_PAIRS)}."
            )
        if nonfinite_loss not in NONFINITE_CHOICES:
            raise UserError(
                f"nonfinite_loss={nonfinite_loss}: choose one of {', '.join(NONFINITE_CHOICES)}."
            )
        self.skips_nonfinite = nonfinite_loss == "skip"
        self.model, self.losses = model, nn.ModuleDict(losses)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.cycle_weight = cycle_weight
        self.inverse_consistency_weight = inverse_consistency_weight
        self.make_backward_pair = BACKWARD_PAIRS[cycle_input]
        self.scorer, self.name = metrics, name
        self.last_pair: Pair | None = None
        self.validation_scores: list[dict[str, float]] = []
        self.validation_divergence: DivergedError | None = None

    def forward(self, pair: Pair) -> Registration:
        return apply_displacement(pair, self.model(pair["fixed"], pair["moving"]))

    def compute_losses(self, pair: Pair, out: Registration) -> dict[str, Tensor]:
        """Return every weighted term by its name, and their sum as ``loss``."""
        return compute_objective(self.losses, pair, out)

    def find_divergence(self, terms: Mapping[str, Tensor], pair: Pair) -> DivergedError | None:
        """Return an error for the first term that is not finite, or None."""
        for name in self.losses:
            if not torch.isfinite(terms[name]):
                return DivergedError(
                    f"loss.{name} became {terms[name].item()} at step {self.global_step} on "
                    f"{', '.join(pair['name'])}: lower training_optimizer.lr or "
                    f"loss.{name}.weight and continue from the last checkpoint.",
                    pair,
                )
        return None

    def log_losses(self, terms: dict[str, Tensor], prefix: str, pair: Pair) -> Tensor:
        """Log the terms of a training step, averaged over processes, and return their sum.

        Raises:
            DivergedError: A term is not finite in one of the processes.
        """
        self.last_pair = pair
        raise_on_all_ranks(self.find_divergence(terms, pair))
        named = {f"{prefix}/{name}": term for name, term in terms.items()}
        batch_size, in_progress_bar = len(pair["name"]), prefix == "train"
        self.log_dict(named, batch_size=batch_size, prog_bar=in_progress_bar, sync_dist=True)
        return terms["loss"]

    def training_step(self, pair: Pair, _: int) -> Tensor:
        try:
            return self.compute_training_loss(pair)
        except DivergedError as error:  # in all processes
            if not self.skips_nonfinite:
                raise
            log.warning("This batch is skipped: %s", error)
            return torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0

    def compute_training_loss(self, pair: Pair) -> Tensor:
        """Register a batch, log its losses and return their sum.

        Raises:
            DivergedError: A term is not finite in one of the processes.
        """
        out = self(pair)
        total = self.log_losses(self.compute_losses(pair, out), "train", pair)
        if self.cycle_weight or self.inverse_consistency_weight:
            total = total + self.compute_cycle_loss(pair, out)
        return total

    def compute_cycle_loss(self, pair: Pair, out: Registration) -> Tensor:
        """Register backward and return the weighted cycle and inverse-consistency losses.

        Both are logged under ``train/backward``.
        """
        backward_pair, total = self.make_backward_pair(pair, out), out.warped.new_zeros(())
        backward = self(backward_pair)
        if self.cycle_weight:
            terms = self.compute_losses(backward_pair, backward)
            loss = self.log_losses(terms, "train/backward", backward_pair)
            total = total + self.cycle_weight * loss
        if self.inverse_consistency_weight:
            loss = inverse_consistency(out.displacement, backward.displacement)
            loss = self.inverse_consistency_weight * loss
            batch_size = len(backward.warped)
            self.log("train/backward/consistency", loss, batch_size=batch_size, sync_dist=True)
            total = total + loss
        return total

    def on_before_optimizer_step(self, _: Optimizer) -> None:
        norm = grad_norm(self, 2).get("grad_2.0_norm_total", torch.zeros(()))
        if torch.isfinite(torch.as_tensor(norm)) or self.trainer.precision == "16-mixed":
            return
        if self.skips_nonfinite:
            log.warning("The gradient became %s: step %d is skipped.", norm, self.global_step)
            self.zero_grad(set_to_none=False)
        else:
            raise DivergedError(
                f"The gradient became {float(norm)} at step {self.global_step}: lower "
                "training_optimizer.lr and continue from the last checkpoint.",
                self.last_pair if self.trainer.is_global_zero else None,
            )

    def on_validation_epoch_start(self) -> None:
        self.validation_scores, self.validation_divergence = [], None

    def validation_step(self, pair: Pair, _: int) -> dict[str, Registration]:
        out = self(pair)
        terms = self.compute_losses(pair, out)
        if self.validation_divergence is None:
            self.validation_divergence = self.find_divergence(terms, pair)
        if self.validation_divergence is None:
            losses = {name: float(term) for name, term in terms.items()}
            self.validation_scores.append(losses | score_validation(pair, out.displacement))
        return {"registration": out}

    def on_validation_epoch_end(self) -> None:
        """Log the mean of every term and metric over the pairs of all processes that have it.

        Lightning's own mean over processes would weight pairs unequally where processes have
        different numbers of them.

        Raises:
            DivergedError: A term was not finite in one of the processes.
        """
        raise_on_all_ranks(self.validation_divergence)
        scores = gather_interleaved(self.validation_scores)
        for name in dict.fromkeys(k for score in scores for k in score if "/" not in k):
            mean = fmean(score[name] for score in scores if name in score)
            self.log(f"val/{name}", mean, sync_dist=True)  # equal in all processes

    def score(self, pair: Pair, u: Tensor) -> dict[str, float]:
        """Compute the metrics of a displacement (1, D, *spatial) in voxels of the fixed grid.

        One that is not finite counts as a failure: the overlap is 0, and the other metrics are
        those without registration.
        """
        if torch.isfinite(u).all():
            return self.scorer(pair, u)
        log.warning(
            "%s: the displacement of %s is not finite; its overlap counts as 0 and its other "
            "metrics are those without registration.",
            pair["name"][0],
            self.name,
        )
        scores = self.scorer(pair, torch.zeros_like(u))
        return {name: 0.0 if name.startswith("dice") else x for name, x in scores.items()}

    def test_step(self, pair: Pair, _: int) -> dict[str, Any]:
        """Return the registration and records of the case before and after registration."""
        with Profile(self.device) as profile:
            out = self(pair)
        zero_field = torch.zeros_like(out.displacement)
        case = {"case": pair["name"][0]}
        cost = {"seconds": profile.seconds, "peak_mb": profile.peak_mb}
        records = [
            case | {"method": "identity"} | self.score(pair, zero_field),
            case | {"method": self.name} | cost | self.score(pair, out.displacement),
        ]
        return {"records": records, "registration": out}

    def configure_optimizers(self) -> Any:
        """Create optimizer and scheduler."""
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise UserError(f"{self.name} has nothing to train: evaluate it with evaluate.py.")
        try:
            optimizer = self.optimizer(self.parameters())
        except (TypeError, ValueError) as error:
            settings = getattr(self.optimizer, "keywords", {})
            raise UserError(f"training_optimizer does not accept {settings}: {error}.") from error
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        if getattr(scheduler, "T_max", 1) < 1:
            raise UserError("scheduler.T_max must be at least 1 epoch.")
        interval = getattr(scheduler, "interval", "epoch")
        return [optimizer], [{"scheduler": scheduler, "interval": interval}]
