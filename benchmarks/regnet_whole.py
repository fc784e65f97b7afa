"""Wall and CPU seconds and peak memory of RegNet's networks on a whole image and in tiles.

``PYTHONPATH=. python benchmarks/regnet_whole.py [side] [--model regnet_unet1] [--tile 64]``.  Each
run has its own process, so that its peak (resident memory, on a GPU memory allocated by PyTorch) is
its own; then the fields are compared.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import torch

from regnet_lab import models

NETWORKS = {
    "regnet": models.RegNet,
    "regnet_crop4": models.RegNetCrop4,
    "regnet_decimation4": models.RegNetDecimation4,
    "regnet_unet1": models.RegNetUNet,
}


def run(name: str, side: int, tile: int | None, threads: int, path: str) -> None:
    """Run one pass, print its cost and save the field to ``path``."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = models.TiledModel(NETWORKS[name](3), tile).eval().to(device)
    fixed, moving = torch.rand(2, 1, 1, side, side, side).to(device)
    start, worked = time.perf_counter(), time.process_time()
    with torch.no_grad():
        (u,) = model(fixed, moving)
        u = u.cpu()
    took, worked = time.perf_counter() - start, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    torch.save(u, path)
    way = f"tiles of {tile}" if tile else "one pass"
    print(
        f"{name} {side}^3 {device}, {way}: {took:.1f} s, {worked:.1f} s of the processor, "
        f"peak {peak / 2**20:.0f} MiB",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split(".", 1)[0])
    parser.add_argument("side", nargs="?", type=int, default=256)
    parser.add_argument("--model", choices=NETWORKS, default="regnet_unet1")
    parser.add_argument("--tile", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiles-only", action="store_true", help="where one pass has no room")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        fields = []
        for tile in [arguments.tile] if arguments.tiles_only else [None, arguments.tile]:
            fields.append(Path(folder) / f"{tile}.pt")
            each = (arguments.model, arguments.side, tile, arguments.threads, str(fields[-1]))
            process = context.Process(target=run, args=each)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"failed with code {process.exitcode}: too little memory?")
        if len(fields) == 2:
            whole, tiled = (torch.load(field, weights_only=True) for field in fields)
            print(
                f"greatest difference of the fields: {(whole - tiled).abs().max():.1e} voxels, "
                f"greatest value {whole.abs().max():.2f}"
            )
