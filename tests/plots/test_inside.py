import numpy as np

from onecycle import plots


def test_gaps_are_gaps_and_only_what_is_above_zero_makes_the_axis_logarithmic():
    ax = plots.plot_levels([1, 2, 3], [[1], [np.inf], [2]], ["a"], ylabel="x", log=True)
    assert np.isnan(ax.lines[0].get_ydata()[1])
    assert ax.get_yscale() == "log"
    assert plots.plot_levels([1], [[0.0]], ["a"], ylabel="x", log=True).get_yscale() == "linear"


def test_color_histogram_is_cut_to_the_bins_that_hold_something():
    shares = np.zeros((3, 60))
    shares[:, 30:33] = 1 / 3
    ax = plots.plot_color_histogram([10, 20, 30], shares, 1000.0, ylabel="x")
    limit = np.log1p(1000.0)
    edges = np.linspace(-limit, limit, 61)
    np.testing.assert_allclose(ax.get_ylim(), (edges[30], edges[33]))
    assert ax.get_yticklabels()[0].get_text() == "0"
    assert ax.get_xlim() == (5, 35)
