"""`MLflow`: the record of a fit as a run of MLflow."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from onecycle.arguments import check_text
from onecycle.callbacks.trackers import Draw, Setting, Tracker, package

#: What a store takes at once, and the longest value of a parameter.
_METRICS, _PARAMS, _LONGEST = 1000, 100, 500


class MLflow(Tracker):
    """Write a fit into a run of MLflow.

    Each series of the record is a metric of its name, whose step is the update over the learner's
    life. The settings are the run's parameters, the picture of a range test is an artifact, and
    where the files are is told by tags. What is written, when, and how a resumed fit goes on, is
    described at `Tracker`; a step that the run has already is not written again.

    Args:
        experiment: The experiment of the run; made where it is missing.
        name: What the run is called.
        uri: The tracking server, or a local store such as ``"sqlite:///runs.db"``; by default the
            one that MLflow is set to.

    Raises:
        ImportError: If mlflow is missing: ``pip install 'onecycle[trackers]'``.

    Example:
        >>> learn.fit_one_cycle(5, cbs=[MLflow("digits")])  # doctest: +SKIP
    """

    def __init__(self, experiment: str, *, name: str | None = None, uri: str | None = None) -> None:
        mlflow = package("mlflow", "MLflow")
        super().__init__(name)
        self.experiment = check_text("experiment", experiment)
        self.uri = None if uri is None else check_text("uri", uri)
        self.failures = (OSError, mlflow.MlflowException)
        self._client: Any = None
        self._run = ""
        self._waiting: list[Any] = []
        self._steps: dict[str, int] = {}  # the last of each metric that the run has

    def _connect(self) -> None:
        self._client = package("mlflow", "MLflow").MlflowClient(tracking_uri=self.uri)
        self._waiting, self._steps = [], {}

    def open_run(self, name: str) -> str:
        """Begin a run, in the experiment of this name."""
        self._connect()
        found = self._client.get_experiment_by_name(self.experiment)
        experiment = self._client.create_experiment(self.experiment) if found is None else None
        run = self._client.create_run(experiment or found.experiment_id, run_name=name)
        self._run = str(run.info.run_id)
        return self._run

    def reopen_run(self, key: str, last: int) -> bool:
        """Go on in the run of this id."""
        self._connect()
        try:
            run = self._client.get_run(key)
        except self.failures as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        self._run = key
        self._client.update_run(key, status="RUNNING")
        for name in run.data.metrics:
            history = self._client.get_metric_history(key, name)
            self._steps[name] = max(each.step for each in history)
        return True

    def write_settings(self, settings: Mapping[str, Setting]) -> None:
        """Write the settings as the run's parameters."""
        entity = package("mlflow.entities", "MLflow").Param
        params = [entity(name, str(value)[:_LONGEST]) for name, value in settings.items()]
        for part in _parts(params, _PARAMS):
            self._client.log_batch(self._run, params=part)

    def write_values(self, update: int, values: Mapping[str, float]) -> None:
        """Keep the values of a step, to be sent together."""
        entity, now = package("mlflow.entities", "MLflow").Metric, int(1000 * time.time())
        for name, value in values.items():
            key = re.sub(r"[^\w\-. :/]", "_", name)
            if update > self._steps.get(key, -1):
                self._waiting.append(entity(key, float(value), now, update))

    def write_range_test(self, draw: Draw, suggestions: Mapping[str, float]) -> None:
        """Write the picture, and the rates as tags."""
        self._client.log_image(self._run, draw(), artifact_file="range_test.png")
        for rule, lr in suggestions.items():
            self._client.set_tag(self._run, f"range_test.{rule}", f"{lr:g}")

    def write_files(self, files: Mapping[str, str]) -> None:
        """Write where the files are, as tags."""
        for name, path in files.items():
            self._client.set_tag(self._run, f"files.{name}", path)

    def flush_run(self) -> str:
        """Send the values that wait; what was sent before a failure is not sent again."""
        waiting, self._waiting = self._waiting, []
        for part in _parts(waiting, _METRICS):
            self._client.log_batch(self._run, metrics=part)
            self._steps |= {metric.key: metric.step for metric in part}
        return self._run

    def close_run(self, has_ended: bool) -> None:
        """Say how it ended."""
        self._client.set_terminated(self._run, "FINISHED" if has_ended else "FAILED")
        self._client = None


def _parts(entities: list[Any], size: int) -> list[list[Any]]:
    return [entities[i : i + size] for i in range(0, len(entities), size)]
