"""Training and evaluation of any registration model with any sum of losses on any data."""

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
from regnet_lab.losses import Loss, inverse_consistency
from regnet_lab.metrics import quick, strict
from regnet_lab.ops.pairs import registered, returned, swapped
from regnet_lab.types import Pair, Registration
from regnet_lab.utils.distributed import gathered, stop_together
from regnet_lab.utils.profiling import Profile

Score = Callable[[Pair, Tensor], dict[str, float]]
WAYS_BACK: dict[str, Callable[[Pair, Registration], Pair]] = {"warped": returned, "fixed": swapped}


class RegistrationModule(LightningModule):
    """Fit ``model`` to pairs.

    Args:
        model: ``model(fixed, moving)`` gives displacement fields, coarse to fine.
        losses: Named terms; the objective is the sum of weight times term.
        optimizer: Makes an optimizer from the parameters.
        scheduler: Makes a schedule from the optimizer; it is stepped once an epoch, or, where its
            attribute ``interval`` is "step", at every step.
        cycle: Weight of the same objective on the way back.
        consistency: Weight of the inverse consistency of the way there and the way back.
        way_back: What is registered to the moving image then: the ``warped`` one (Kuang, SASHIMI
            2019) or the ``fixed`` one.
        score: Judges a test pair.
        name: What the model is called in tables.

    Raises:
        UserError: ``way_back`` is neither.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Mapping[str, Loss],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        cycle: float = 0.0,
        consistency: float = 0.0,
        way_back: str = "warped",
        score: Score = strict,
        name: str = "model",
    ) -> None:
        super().__init__()
        self.model, self.losses = model, nn.ModuleDict(losses)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.cycle, self.consistency, self.score, self.name = cycle, consistency, score, name
        if way_back not in WAYS_BACK:
            raise UserError(f"way_back={way_back}: choose one of {', '.join(WAYS_BACK)}.")
        self.way_back = WAYS_BACK[way_back]

    def forward(self, pair: Pair) -> Registration:
        return registered(pair, self.model(pair["fixed"], pair["moving"]))

    def objective(self, pair: Pair, out: Registration) -> dict[str, Tensor]:
        """Every term times its weight, and their sum, ``loss``."""
        terms = {name: loss.weight * loss(pair, out) for name, loss in self.losses.items()}
        return terms | {"loss": torch.stack(list(terms.values())).sum()}

    def divergence(self, terms: Mapping[str, Tensor], pair: Pair) -> DivergedError | None:
        """What there is to say of the first term that is not finite."""
        for name in self.losses:
            if not torch.isfinite(terms[name]):
                return DivergedError(
                    f"loss.{name} became {terms[name].item()} at step {self.global_step} on "
                    f"{', '.join(pair['name'])}: lower optim.lr or loss.{name}.weight and continue "
                    "from the last checkpoint.",
                    pair,
                )
        return None

    def tell(self, terms: dict[str, Tensor], stage: str, pair: Pair) -> Tensor:
        """Log the terms of a training step of all processes; their sum.

        Raises:
            DivergedError: A term is not finite in one of them.
        """
        self.latest = pair
        stop_together(self.divergence(terms, pair))
        named = {f"{stage}/{name}": term for name, term in terms.items()}
        self.log_dict(
            named, batch_size=len(pair["name"]), prog_bar=stage == "train", sync_dist=True
        )
        return terms["loss"]

    def training_step(self, pair: Pair, _: int) -> Tensor:
        out = self(pair)
        total = self.tell(self.objective(pair, out), "train", pair)
        if self.cycle or self.consistency:
            total = total + self.round_trip(pair, out)
        return total

    def round_trip(self, pair: Pair, out: Registration) -> Tensor:
        """What the way back adds to the objective, logged below ``train/back``."""
        back, total = self.way_back(pair, out), out.warped.new_zeros(())
        home = self(back)
        if self.cycle:
            total = total + self.cycle * self.tell(self.objective(back, home), "train/back", back)
        if self.consistency:
            apart = self.consistency * inverse_consistency(out.displacement, home.displacement)
            self.log("train/back/consistency", apart, batch_size=len(home.warped), sync_dist=True)
            total = total + apart
        return total

    def on_before_optimizer_step(self, _: Optimizer) -> None:
        norm = grad_norm(self, 2).get("grad_2.0_norm_total", torch.zeros(()))
        if not torch.isfinite(torch.as_tensor(norm)) and self.trainer.precision != "16-mixed":
            raise DivergedError(
                f"The gradient became {float(norm)} at step {self.global_step}: lower optim.lr and "
                "continue from the last checkpoint.",
                self.latest if self.trainer.is_global_zero else None,
            )

    def on_validation_epoch_start(self) -> None:
        self.scores: list[dict[str, float]] = []
        self.diverged: DivergedError | None = None

    def validation_step(self, pair: Pair, _: int) -> dict[str, Registration]:
        out = self(pair)
        terms = self.objective(pair, out)
        self.diverged = self.diverged or self.divergence(terms, pair)
        if self.diverged is None:
            numbers = {name: float(term) for name, term in terms.items()}
            self.scores.append(numbers | quick(pair, out.displacement))
        return {"registration": out}

    def on_validation_epoch_end(self) -> None:
        """Log the mean of every term and score over the pairs of all processes that have it.

        (Lightning's own mean over processes rounds an odd number of pairs down.)

        Raises:
            DivergedError: A term was not finite in one of them.
        """
        stop_together(self.diverged)
        scores = gathered(self.scores)
        for name in dict.fromkeys(k for score in scores for k in score if "/" not in k):
            average = fmean(score[name] for score in scores if name in score)
            self.log(f"val/{name}", average, sync_dist=True)  # the same everywhere

    def test_step(self, pair: Pair, _: int) -> dict[str, Any]:
        """Records of the case without registration and with it, and the registration."""
        with Profile(self.device) as profile:
            out = self(pair)
        still = torch.zeros_like(out.displacement)
        case = {"case": pair["name"][0]}
        records = [
            case | {"method": "identity"} | self.score(pair, still),
            case
            | {"method": self.name, "seconds": profile.seconds, "peak_mb": profile.peak_mb}
            | self.score(pair, out.displacement),
        ]
        return {"records": records, "registration": out}

    def configure_optimizers(self) -> Any:
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise UserError(f"{self.name} has nothing to train: judge it with evaluate.py.")
        try:
            optimizer = self.optimizer(self.parameters())
        except (TypeError, ValueError) as error:
            given = getattr(self.optimizer, "keywords", {})
            raise UserError(f"optim does not accept {given}: {error}.") from error
        if self.scheduler is None:
            return optimizer
        schedule = self.scheduler(optimizer)
        interval = getattr(schedule, "interval", "epoch")
        return [optimizer], [{"scheduler": schedule, "interval": interval}]
