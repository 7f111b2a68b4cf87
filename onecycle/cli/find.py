"""Run the learning-rate range test on a folder of images, and draw it in the terminal."""

from __future__ import annotations

import argparse

from onecycle.cli import job
from onecycle.cli.options import check_picture
from onecycle.processes import is_follower, join


def find(options: argparse.Namespace) -> None:
    """Find a learning rate; write nothing but the picture that is asked for, and the cache."""
    job.check(options)
    if options.plot is not None:
        check_picture("--plot", options.plot)
    join()
    job.say("onecycle find: a range test, after which everything is put back")
    job.show(job.told(options))
    learn = job.make_learner(options, [])
    result = learn.lr_find(show_plot=False)
    job.say(result.to_text())
    if options.plot is not None and not is_follower():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        result.plot(figure.subplots())
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(options.plot, dpi=120)
        print(f"\nWrote {options.plot}")
