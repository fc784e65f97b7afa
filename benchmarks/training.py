"""Seconds and memory of a training step of every model, VoxelMorph's own network stepping beside.

``python benchmarks/training.py [--models voxelmorph gradirn] [--sides 64 128]``.  One process for
each model; the step is forward, local NCC and diffusion, backward and Adam, on noise.  A size whose
step would take longer than ``--longest`` seconds, judged by its voxels, is left out.  ``--precision
bf16`` or ``16`` (without loss scaling, which costs little), ``--compile 1``.
"""

import json
import sys
from collections.abc import Callable, Iterator

import harness
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from regnet_lab.config.instantiate import instantiate_config

PEER = "VoxelMorph 0.3.4"
FEATURES = (16, 16, 16, 16, 16)  # what its class offers
HALVES = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}
LEFT_OUT = {"identity", "convex_adam", "regnet_slices"}  # nothing to train; RegNet in 2D again
CLASSICAL = "regnet_lab.models.classical"


def models() -> list[str]:
    """Every model of conf/ that learns."""
    paths = sorted((harness.ROOT / "conf/model").glob("*.yaml"))
    return [
        p.stem
        for p in paths
        if p.stem not in LEFT_OUT and CLASSICAL not in p.read_text(encoding="utf-8")
    ]


def ours(name: str, shape: list[int], pair: dict) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    """A model of ours and its loss."""
    with initialize_config_dir(str(harness.ROOT / "conf"), version_base="1.3"):
        size = f"data.dataset.shape={shape}".replace(" ", "")
        cfg = compose("train", [f"model={name}", f"ndim={len(shape)}", size, "loss=ncc"])
        cfg.module.name = name
        module = instantiate_config(cfg.module)
    module.log = module.log_dict = lambda *_, **__: None
    return module, lambda: module.training_step(pair, 0)


def theirs(shape: list[int], pair: dict) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    """VoxelMorph's network with neurite's losses."""
    from neurite.nn.modules import NCC, SpatialGradient
    from voxelmorph.nn.models import VxmPairwise

    device = pair["fixed"].device.type
    network = VxmPairwise(len(shape), 1, 1, FEATURES, integration_steps=0, device=device)
    likeness, roughness = NCC(9), SpatialGradient("l2")

    def loss() -> Tensor:
        field, warped = network(pair["moving"], pair["fixed"], return_warped_source=True)
        return -likeness(pair["fixed"], warped).mean() + roughness(field).mean()

    return network, loss


def pair_of(shape: list[int], batch: int, device: torch.device) -> dict:
    """Two images of noise."""
    fixed, moving = torch.rand(2, batch, 1, *shape, device=device)
    names = [str(number) for number in range(batch)]
    spacing = torch.ones(batch, len(shape), device=device)
    return {"fixed": fixed, "moving": moving, "spacing": spacing, "name": names}


def steps(
    name: str, shape: list[int], batch: int, arguments: harness.argparse.Namespace
) -> harness.Row:
    """The best of some steps, the first being a warm-up unless it is long."""
    pair = pair_of(shape, batch, arguments.device)
    network, loss = theirs(shape, pair) if name == PEER else ours(name, shape, pair)
    network.to(arguments.device).train()
    dtype = HALVES[arguments.precision]
    if arguments.compile:
        (network if name == PEER else network.model).compile()
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(arguments.device.type, dtype, enabled=dtype is not None):
            value = loss()
        value.backward()
        optimizer.step()

    harness.trim()
    before = harness.resident_mb()
    with harness.Profile(arguments.device) as profile:
        taken = [harness.once(step, arguments.device)]
    more = 0 if taken[0][1] > arguments.seconds / 2 else 3
    taken += [harness.once(step, arguments.device) for _ in range(more)]
    wall, cpu = (min(times) for times in zip(*taken, strict=True))
    return {
        "model": name,
        "parameters": sum(p.numel() for p in network.parameters()),
        "size": f"{batch} x {' x '.join(map(str, shape))}",
        "min_s": wall,
        "cpu_s": cpu,
        "samples_s": batch / wall,
        "peak_mb": profile.peak_mb - (0 if arguments.device.type == "cuda" else before),
    }


def sizes(arguments: harness.argparse.Namespace) -> Iterator[tuple[list[int], int]]:
    """Shape and batch, the small ones first."""
    yield [256, 256], 8
    for side in sorted(arguments.sides):
        yield [side] * 3, 1
    if arguments.device.type == "cuda":
        yield [160, 192, 224], 1


def measure_sizes(name: str, arguments: harness.argparse.Namespace) -> list[harness.Row]:
    """All sizes of a model that are short enough."""
    rows: list[harness.Row] = []
    for shape, batch in sizes(arguments):
        voxels = torch.Size(shape).numel() * batch
        volumes = [row for row in rows[1:] if "cpu_s" in row]
        likely = max((row["cpu_s"] / row["voxels"] * voxels for row in volumes), default=0)
        if likely > arguments.longest:
            continue
        try:
            rows.append(steps(name, shape, batch, arguments) | {"voxels": voxels})
        except (ValueError, RuntimeError) as error:  # a model for one number of axes, or memory
            rows.append({"model": name, "size": str(shape), "failed": str(error).split("\n")[0]})
    return rows


def list_unusual_settings(arguments: harness.argparse.Namespace) -> list[str]:
    """What is unusual in the settings, for the name of the file."""
    precision = [] if arguments.precision == "32" else [arguments.precision]
    return precision + ["compiled"] * arguments.compile


def main() -> None:
    """Every model in a process of its own."""
    defaults = {
        "models": [""],
        "sides": [64, 128],
        "longest": 12.0,
        "precision": "32",
        "compile": 0,
    }
    arguments = harness.options(__doc__, **defaults, child="")
    if arguments.child:
        print(json.dumps({"rows": measure_sizes(arguments.child, arguments)}))
        return
    rows = []
    for name in [n for n in arguments.models if n] or [PEER, *models()]:
        command = [__file__, "--child", name, *sys.argv[1:]]
        answer = harness.child(command, timeout=600)
        for row in answer.get("rows", [{"model": name, **answer}]):
            print(row, flush=True)
            rows.append(row)
    ending = "".join(
        [f"_{arguments.precision}"] * (arguments.precision != "32")
        + ["_compiled"] * arguments.compile
    )
    harness.save(f"training{ending}", arguments, rows)


if __name__ == "__main__":
    main()
