"""`Predictor`: a model out of a file, with what belongs to it, and no training data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onecycle.arguments import check_is, check_path, shown
from onecycle.checkpoints.graphs import Graph
from onecycle.checkpoints.module_state import check_fits, renamed_state
from onecycle.checkpoints.sealed import read_sealed
from onecycle.data.calls import call_model
from onecycle.data.transfer import to_device
from onecycle.errors import CheckpointError
from onecycle.explanations import describe
from onecycle.vision.steps import ImageSteps

#: The version of the files.
FORMAT = 1

#: What turns predictions into probabilities, by what they are.
READS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda pred: pred.softmax(1),
    "sigmoid": lambda pred: pred.sigmoid(),
    "exp": lambda pred: pred.exp(),
    "values": lambda pred: pred,
}


class Prediction(NamedTuple):
    """What a model says of one image; unpacks as ``label, class_index, probabilities``.

    Attributes:
        label: The name of the class of the highest probability.
        class_index: Its number.
        probabilities: Of shape ``(classes,)``.
    """

    label: str
    class_index: int
    probabilities: Tensor


class Predictor:
    """Predicts with a model that `Learner.export` wrote; made by `load_predictor`.

    Attributes:
        classes: The names of the classes, class 0 first; ``None`` where the file has none.
        reads: How predictions read: ``"softmax"``, ``"sigmoid"``, ``"exp"`` (of log
            probabilities), or ``"values"``, as they are.
        image: What is done to an image file; ``None`` where the model was trained on others.
        device: Where the model runs.
    """

    def __init__(
        self,
        run: Callable[[Any], Any],
        *,
        classes: list[str] | None,
        reads: str,
        image: ImageSteps | None,
        device: torch.device,
    ) -> None:
        self._run = run
        self.classes, self.reads, self.image, self.device = classes, reads, image, device

    def __call__(self, xb: Any) -> Any:
        """Return what the model says of a batch, as `Learner.get_preds` does.

        Args:
            xb: What the model gets of a batch: a tensor of shape ``(batch, ...)``, or a tuple of
                them for a model of several inputs. It is moved to ``device``.

        Raises:
            ValueError: For a batch of another kind than the model was exported with.
        """
        with torch.no_grad():
            return self._run(to_device(xb, self.device))

    def probabilities(self, xb: Any) -> Tensor:
        """Return what the model says of a batch, read as ``reads`` says.

        Args:
            xb: As for a call.

        Returns:
            Of the shape of the predictions, on the CPU.
        """
        pred = self(xb)
        if not isinstance(pred, Tensor):
            raise ValueError(f"expected one tensor of predictions; got {describe(pred)}")
        return READS[self.reads](pred.float()).cpu()

    def predict_images(self, images: Sequence[Any], batch_size: int = 64) -> list[dict[str, float]]:
        """Say what is to be seen in image files.

        Args:
            images: Image files, or images of PIL.
            batch_size: How many are predicted at once.

        Returns:
            For each image the probabilities of the classes, the highest first.

        Raises:
            ValueError: If the model was not trained on images of `onecycle.vision`, or a file
                holds none.
            OSError: If a file cannot be opened.
        """
        if self.image is None:
            raise ValueError(
                "the file does not say what was done to images before the model saw them, as it "
                "does for loaders of onecycle.vision.image_folder: call the predictor with a batch"
            )
        if isinstance(images, str | Path) or not isinstance(images, Sequence):
            raise TypeError(f"images must be a list of files; got {shown(images)}")
        found: list[dict[str, float]] = []
        for i in range(0, len(images), batch_size):
            pixels = torch.stack([self.image.pixels(each) for each in images[i : i + batch_size]])
            each = self.probabilities(self.image.normalized(pixels))
            if each.ndim != 2:
                raise ValueError(f"expected a prediction for each class; got {describe(each)}")
            found += [self._named(row) for row in each.tolist()]
        return found

    def predict(self, image: Any) -> Prediction:
        """Say what is to be seen in one image: its class, the number of it, and all probabilities.

        Args:
            image: An image file, or an image of PIL.

        Raises:
            ValueError, OSError: As `predict_images` does.
        """
        said = self.predict_images([image])[0]
        names = self.classes or [str(i) for i in range(len(said))]
        label = next(iter(said))
        return Prediction(label, names.index(label), torch.tensor([said[each] for each in names]))

    def _named(self, row: list[float]) -> dict[str, float]:
        names = self.classes or [str(i) for i in range(len(row))]
        if len(names) != len(row):
            raise ValueError(f"the model predicts {len(row)} classes; there are {len(names)} names")
        pairs = zip(names, row, strict=True)
        return dict(sorted(pairs, key=lambda pair: pair[1], reverse=True))

    def __repr__(self) -> str:
        parts = [f"reads={self.reads!r}", f"device={str(self.device)!r}"]
        if self.classes is not None:
            parts.insert(0, f"{len(self.classes)} classes")
        if self.image is not None:
            parts.insert(0, f"images of {self.image.size}x{self.image.size}")
        return f"Predictor({', '.join(parts)})"


def load_predictor(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    device: str | torch.device | None = None,
) -> Predictor:
    """Load what `Learner.export` wrote; needs no training data, and runs no code from the file.

    The model is a list of torch's operators, of which every one is known to do nothing but compute
    with tensors; a file that names anything else is refused, before any of it is run.

    Args:
        path: A file that `Learner.export` wrote.
        model: A model of the same kind as the exported one, where the file holds only its
            weights, as the message of ``export`` said. It takes them, and goes to evaluation mode.
        device: Where to run; by default the CPU.

    Raises:
        CheckpointError: If the file is none of ours or damaged, holds what could do more than
            compute, or does not fit the model.
        ValueError: If the file holds only weights, and no model is given.
        OSError: If the file cannot be opened.

    Example:
        >>> import tempfile
        >>> from onecycle.testing import toy_learner
        >>> path = Path(tempfile.mkdtemp()) / "toy.onecycle"
        >>> learn = toy_learner()
        >>> learn.export(path)
        >>> load_predictor(path)(torch.zeros(3, 4)).shape
        torch.Size([3, 1])
    """
    path = check_path("path", path)
    if model is not None:
        check_is("model", model, nn.Module)
    on = torch.device("cpu" if device is None else device)
    state = read_sealed(path, lambda state: _check(path, state))
    run = _graph_of(path, state, on) if model is None else _model_of(path, state, model, on)
    image = state["image"]
    return Predictor(
        run,
        classes=state["classes"],
        reads=state["reads"],
        image=None if image is None else ImageSteps(image["size"], image["mean"], image["std"]),
        device=on,
    )


def _check(path: Path, state: Any) -> None:
    version = state.get("predictor") if isinstance(state, dict) else None
    if type(version) is not int:
        raise CheckpointError(f"{path} was not written by Learner.export")
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}; this onecycle reads {FORMAT}")
    image, classes = state.get("image"), state.get("classes")
    is_whole = (
        all(isinstance(state.get(name), dict) for name in ("state", "constants"))
        and isinstance(state.get("reads"), str)
        and state["reads"] in READS
        and (classes is None or (type(classes) is list and set(map(type, classes)) <= {str}))
        and (image is None or _is_image(image))
        and "graph" in state
    )
    if not is_whole:
        raise CheckpointError(f"{path} was not written by Learner.export: a part is missing")


def _is_image(image: Any) -> bool:
    if type(image) is not dict or type(image.get("size")) is not int:
        return False
    numbers = [image.get("mean"), image.get("std")]
    return all(type(each) is tuple and set(map(type, each)) == {float} for each in numbers)


def _graph_of(path: Path, state: dict[str, Any], device: torch.device) -> Callable[[Any], Any]:
    graph = state["graph"]
    if type(graph) is not dict:
        raise ValueError(
            f"{path} holds the weights of a model, and not the model itself ({shown(graph)}): "
            "load_predictor(path, model=...) with a model of the same kind"
        )
    try:
        inputs = [_Expected(*each) for each in graph["inputs"]]
        tensors = {"state": state["state"], "constant": state["constants"]}
        run = Graph(graph, tensors, device)
        if run.n_inputs != len(inputs):
            raise ValueError(f"it has {run.n_inputs} inputs, and tells of {len(inputs)}")
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a predictor: {error}") from error

    def predict(xb: Any) -> Any:
        parts = list(xb) if type(xb) in (tuple, list) else [xb]
        if len(parts) != len(inputs):
            raise ValueError(f"expected {len(inputs)} inputs; got {len(parts)}")
        for part, expected in zip(parts, inputs, strict=True):
            expected.check(part)
        return run(parts)

    return predict


class _Expected:
    """What an input of a model was when it was exported; its batch may be of any size."""

    def __init__(self, dtype: str, shape: list[int]) -> None:
        self._dtype, self._shape = getattr(torch, dtype), tuple(shape)
        if not isinstance(self._dtype, torch.dtype):
            raise ValueError(f"it has an input of {dtype}")

    def check(self, part: Any) -> None:
        """Refuse what the exported operators were not made for."""
        fits = isinstance(part, Tensor) and part.ndim == len(self._shape) + 1 and len(part)
        if not fits or part.shape[1:] != self._shape or part.dtype != self._dtype:
            kind = ", ".join(map(str, ("batch", *self._shape)))
            raise ValueError(
                f"expected a tensor of shape ({kind}) and {self._dtype}, as the model was exported "
                f"with; got {describe(part)}"
            )


def _model_of(
    path: Path, state: dict[str, Any], model: nn.Module, device: torch.device
) -> Callable[[Any], Any]:
    own: Mapping[str, Any] = model.state_dict()
    found = renamed_state(state["state"], own)
    check_fits(path, found, own)
    model.load_state_dict(found)
    model.to(device).eval()
    return lambda xb: call_model(model, xb)
