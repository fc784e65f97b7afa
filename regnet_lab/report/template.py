"""A picture of an atlas."""

from matplotlib.figure import Figure

from regnet_lab.report import views
from regnet_lab.report.canvas import View, arranged, figure_of, window
from regnet_lab.report.slices import Array, centre, planes


def atlas(
    heading: str,
    mean: Array,
    template: Array,
    spacing: list[float],
    labels: Array | None = None,
    probability: Array | None = None,
) -> Figure:
    """The plain mean and the template on one scale of grey, and what the labels' vote gave.

    Args:
        heading: Above everything.
        mean: (*spatial) mean of the images as they are.
        template: (*spatial).
        spacing: Millimetres per voxel.
        labels: (*spatial) winning labels; none where the subjects have none.
        probability: (*spatial) their share of the votes.
    """
    grey = window(mean, template)
    shown = [views.grey("plain mean", mean, grey), views.grey("template", template, grey)]
    if labels is not None and probability is not None:
        share = views.image_of(probability, (0, 1), "viridis")
        shown += [
            views.regions(labels, template, grey),
            View("share of votes\nof the winning label", share, True),
        ]
    regions = labels if labels is not None and labels.any() else template - template.min()
    return figure_of(heading, arranged(planes(centre(regions != 0)), shown), mean.shape, spacing)
