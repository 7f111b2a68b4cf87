import io

import fastprogress.fastprogress as fastprogress
import IPython.display
import matplotlib.image
import pytest

from onecycle import Callback, ShowGraph
from onecycle.callbacks import show_graph
from onecycle.testing import toy_learner


class Shown:
    """Stands in for the output of a cell."""

    def __init__(self):
        self.pictures, self.places = [], 0

    def display(self, image, display_id):
        assert display_id
        self.places += 1
        self.update(image)
        return self

    def update(self, image):
        self.pictures.append(matplotlib.image.imread(io.BytesIO(image.data), format="png").shape)


@pytest.fixture
def shown(monkeypatch):
    output = Shown()
    monkeypatch.setattr(fastprogress, "IN_NOTEBOOK", True)
    monkeypatch.setattr(IPython.display, "display", output.display)
    return output


@pytest.mark.slow
def test_each_epoch_draws_in_the_same_place_and_metrics_stand_beside_the_loss(shown):
    toy_learner().fit(3, cbs=[ShowGraph()])
    assert shown.places == 1
    assert shown.pictures == [(336, 960, 4)] * 3
    shown.pictures.clear()
    toy_learner(metrics=[]).fit(1, cbs=[ShowGraph()])
    assert shown.pictures == [(336, 560, 4)]


@pytest.mark.slow
def test_within_an_epoch_it_draws_when_the_time_has_come(shown, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(show_graph, "perf_counter", lambda: clock[0])

    def tick(learn):
        clock[0] += 1.0

    toy_learner(n_batches=10).fit(1, cbs=[ShowGraph(4), Callback(after_pred=tick, during="train")])
    assert len(shown.pictures) == 2 + 1  # after 4 and 8 seconds, and at the end


def test_studies_and_range_tests_draw_nothing_of_theirs(shown):
    learn = toy_learner(cbs=(ShowGraph(),))
    learn.lr_find(num_it=10, show_plot=False)
    learn.compare(1, 0.1, ["constant"], seeds=[0])
    assert shown.pictures == []


def test_outside_of_a_notebook_nothing_is_drawn_and_the_log_says_so(said):
    toy_learner().fit(1, cbs=[ShowGraph()])
    assert "ShowGraph draws in notebooks, and this is none" in said()
