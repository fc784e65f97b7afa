"""A second look at the field."""

from torch import Tensor, nn

from regnet_lab.models.layers import Convolution, activated


class Refined(nn.Module):
    """Append to the fields of ``model`` its last one with a learned correction added.

    u' = u + rho(conv_D(rho(conv_n(u)))), 3^D kernels and leaky rectifiers rho of slope 0.2;
    2,611 parameters in 3D (published with FAIM, Kuang and Schmah).

    Args:
        model: Gives the field u.
        ndim: 2 or 3.
        channels: Width n of the correction.
        detached: Let u' teach the correction alone; the model then needs a loss on its own field,
            as ``loss=refined`` has, and would otherwise learn nothing.
    """

    def __init__(
        self, model: nn.Module, ndim: int, channels: int = 16, detached: bool = False
    ) -> None:
        super().__init__()
        self.model, self.detached = model, detached
        self.refinement = nn.Sequential(
            activated(ndim, ndim, channels), activated(ndim, channels, ndim)
        )
        for layer in self.refinement.modules():
            if isinstance(layer, Convolution):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        fields = self.model(fixed, moving)
        u = fields[-1].detach() if self.detached else fields[-1]
        return [*fields, u + self.refinement(u).float()]
