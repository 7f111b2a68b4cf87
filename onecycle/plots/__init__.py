"""Pictures: data and axes in, axes out; and one of characters.

Nothing here shows or saves a figure, keeps state or changes matplotlib's settings; matplotlib is
imported when a picture is drawn.
"""

from onecycle.plots.history import plot_bands, plot_loss, plot_metrics, plot_sched
from onecycle.plots.inside import plot_bars, plot_color_histogram, plot_levels
from onecycle.plots.range_test import plot_lr_find, plot_plateaus, plot_range_tests
from onecycle.plots.samples import plot_confusion, plot_images, plot_table
from onecycle.plots.style import to_pixels
from onecycle.plots.text import draw_lr_find

__all__ = [
    "draw_lr_find",
    "plot_bands",
    "plot_bars",
    "plot_color_histogram",
    "plot_confusion",
    "plot_images",
    "plot_levels",
    "plot_loss",
    "plot_lr_find",
    "plot_metrics",
    "plot_plateaus",
    "plot_range_tests",
    "plot_sched",
    "plot_table",
    "to_pixels",
]
