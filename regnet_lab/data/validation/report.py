"""What the examination of a data set found, for people: tables, sentences, a refusal to train."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from statistics import median

from nibabel.orientations import aff2axcodes
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track
from rich.table import Table

from regnet_lab.data.datamodule import PairModule
from regnet_lab.data.datasets.base import Listing
from regnet_lab.data.validation.case_checks import Look
from regnet_lab.data.validation.dataset_checks import SHOWN, label_counts
from regnet_lab.data.validation.validate import SPLITS, Checkup, examine
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

QUANTILES = ("minimum", "0.5 %", "99.5 %", "maximum")

log = logging.getLogger(__name__)


def between(rows: Iterable[Sequence[float]]) -> str:
    """Smallest and largest number in each column: ``31-43 x 40-59``, those of each length apart."""
    by_length: dict[int, list[Sequence[float]]] = {}
    for row in rows:
        by_length.setdefault(len(row), []).append(row)
    return ", ".join(
        " x ".join(extent(column) for column in zip(*same, strict=True))
        for same in by_length.values()
    )


def extent(numbers: Sequence[float]) -> str:
    """Smallest and largest number, or the only one."""
    low, high = f"{min(numbers):.5g}", f"{max(numbers):.5g}"
    return low if low == high else f"{low} to {high}" if "-" in low + high else f"{low}-{high}"


def census(things: Iterable[str]) -> str:
    """How many there are of each: ``RAS (12), LAS (1)``."""
    return ", ".join(f"{thing} ({count})" for thing, count in Counter(things).most_common())


def case_rows(looks: Sequence[Look]) -> dict[str, str]:
    """What the cases of a listing are like, by property."""
    volumes = [look.volume for look in looks if look.volume]
    images = {look.image.digest: look.image for look in looks if look.image}
    ranges = zip(*(facts.quantiles for facts in images.values()), strict=True)
    codes = ("".join(aff2axcodes(v.affine)[: v.array.ndim]) for v in volumes)
    return {
        "shape": between(volume.array.shape for volume in volumes),
        "spacing (mm)": between(volume.spacing.tolist() for volume in volumes),
        "orientation": census(codes),
        **{name: extent(values) for name, values in zip(QUANTILES, ranges, strict=False)},
    }


def item_rows(items: Sequence[Pair]) -> dict[str, str]:
    """What the items that were looked at are like, by property."""
    images = [image for pair in items for image in (pair["fixed"], pair["moving"])]
    ends = [float(end) for image in images for end in (image.min(), image.max())]
    return {
        "items looked at": str(len(items)),
        "prepared shape": between([*image.shape[1:]] for image in images),
        "prepared spacing (mm)": between(pair["spacing"].tolist() for pair in items),
        "prepared range": extent(ends),
        "offers": ", ".join(dict.fromkeys(key for pair in items for key in pair)),
    }


def column(checkup: Checkup, listing: Listing) -> dict[str, str]:
    """All that is told of a listing, by property."""
    told = {"pairs": str(len(listing))}
    if listing.cases:
        looks = [checkup.looks[case] for case in listing.cases]
        marks = [look.points for look in looks if look.points is not None]
        told["cases"] = str(len(looks))
        told |= case_rows(looks)
        told["label maps"] = str(sum(case.labels is not None for case in listing.cases))
        told["masks"] = str(sum(case.mask is not None for case in listing.cases))
        told["landmarks"] = f"{extent(marks)} in {len(marks)} cases" if marks else "0"
        told["faulty cases"] = str(sum(bool(look.faults) for look in looks))
        told["cached (MB)"] = f"{checkup.megabytes[listing]:.0f}"
    if items := checkup.items.get(listing):
        told |= item_rows(items)
    return told


def label_column(checkup: Checkup, listing: Listing) -> dict[str, str]:
    """Maps that hold each label of a listing, and the median of its voxels there."""
    maps = label_counts([listing], checkup.looks).values()
    return {
        str(label): f"{len(sizes)} of {len(maps)}, {median(sizes):.0f}"
        for label in sorted(set().union(*maps))
        if (sizes := [counts[label] for counts in maps if label in counts])
    }


def grid(title: str, checkup: Checkup, tell: Callable) -> Table | None:
    """A table with a column for each listing and a row for all that ``tell`` says of one."""
    columns = {listing.title: tell(checkup, listing) for listing in checkup.listings}
    rows = list(dict.fromkeys(chain.from_iterable(columns.values())))
    if not rows:
        return None
    table = Table(title=title)
    for name in ("", *columns):
        table.add_column(name)
    for row in rows:
        table.add_row(row, *(told.get(row, "") for told in columns.values()))
    return table


def watch(results: Iterable, total: int) -> Iterable:
    """Show on a terminal how far reading is."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return results
    return track(results, "reading files", total, console=console, transient=True)


def show(checkup: Checkup) -> None:
    """Print tables, faults and warnings."""
    console = Console()
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    for title, tell in (("data", column), ("label: maps with it, median voxels", label_column)):
        if table := grid(title, checkup, tell):
            console.print(table)
    for kind, sentences in (("fault", checkup.faults), ("warning", checkup.warnings)):
        for sentence in sentences:
            say(f"{kind}: {sentence}")
    if not checkup.faults:
        say(f"No faults, {len(checkup.warnings)} warnings.")


@rank_zero_only
def check(data: PairModule, whole: bool) -> None:
    """Examine data before they are used, or for their own sake.

    Args:
        data: What to examine.
        whole: Examine all splits thoroughly and print what is found; otherwise the training and
            validation cases, and print only what is wrong.

    Raises:
        UserError: Something is wrong.
    """
    checkup = examine(data.dataset, SPLITS if whole else ("train", "val"), whole, watch)
    if whole:
        show(checkup)
    refuse(checkup.faults, told=whole)
    if not whole:
        pairs, cases = sum(map(len, checkup.listings)), len(checkup.looks)
        size = sum(checkup.megabytes.values())
        known = f"; {len(checkup.warnings)} warnings, see doctor=true" if checkup.warnings else ""
        log.info("data: %d pairs of %d cases, %.0f MB when cached%s", pairs, cases, size, known)


def refuse(faults: Sequence[str], told: bool) -> None:
    """Raise a UserError if there are faults, all of which are then on the terminal."""
    if len(faults) == 1:
        raise UserError(faults[0])
    if faults and not told:
        Console(stderr=True).print(*faults, sep="\n", markup=False, highlight=False, soft_wrap=True)
    if faults:
        raise UserError(
            f"the data have {len(faults)} faults, each listed above, such as "
            + " ".join(faults[:SHOWN])
        )
