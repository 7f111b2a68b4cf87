"""Say what is to be seen in images, with the model that a run has trained."""

from __future__ import annotations

import argparse

from onecycle.cli.problem import Problem
from onecycle.training.predictor import load_predictor

#: The file of a run that has its model.
PREDICTOR = "model.onecycle"


def predict(options: argparse.Namespace) -> None:
    """Print the likeliest classes of each image."""
    path = options.folder / PREDICTOR
    if not path.is_file():
        raise Problem(f"there is no {path}: onecycle train writes it when the run has ended")
    missing = [str(image) for image in options.images if not image.is_file()]
    if missing:
        raise Problem(f"there is no image file {missing[0]}")
    predictor = load_predictor(path, device=options.device)
    for image, found in zip(options.images, predictor.predict_images(options.images), strict=True):
        best = list(found.items())[: options.top]
        print(f"{image}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in best))
