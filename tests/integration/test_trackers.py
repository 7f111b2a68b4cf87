"""What trackers hold of a fit, read back from their own files, also of one that was resumed.

Their packages come with `pip install -e '.[trackers]'`; nothing is sent anywhere.
"""

import json
import struct

import numpy as np
import pytest
from started import Job

from onecycle import Callback, Checkpoint, MLflow, SaveModel, TensorBoard, WandB
from onecycle.cli.train import TRACKERS
from onecycle.testing import toy_learner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

NAMES = ("train_loss", "lr", "momentum", "valid_loss", "mse")


class KilledError(Exception):
    pass


def kill_at(update):
    def kill(learn):
        if learn.training and learn.n_updates == update:
            raise KilledError

    return Callback(after_pred=kill)


def killed_and_resumed(tmp_path, make):
    """Fit after a range test, break off beyond the last checkpoint, and go on in a new learner."""

    def fit(*cbs, **options):
        learn = toy_learner(n_batches=5)
        if not options:
            learn.lr_find(num_it=10, show_plot=False)
        saves = [SaveModel(tmp_path / "best.pt"), Checkpoint(tmp_path / "c", "3 updates")]
        learn.fit_one_cycle(3, 0.1, cbs=[make(), *saves, *cbs], **options)
        return learn

    with pytest.raises(KilledError):
        fit(kill_at(13))
    return fit(resume=tmp_path / "c")


def of_record(history, name, kind=np.float64):
    values = history[name].values.astype(kind).tolist()
    return list(zip(history[name].updates.tolist(), values, strict=True))


# TensorBoard --------------------------------------------------------------------------------


@pytest.fixture
def events():
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )

    def read(folder):
        return accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()

    return read


def scalars(read, name):
    return [(event.step, event.value) for event in read.Scalars(name)]


def test_tensorboard_has_the_record_once_in_one_run_with_settings_picture_and_files(
    tmp_path, events
):
    learn = killed_and_resumed(tmp_path, lambda: TensorBoard(tmp_path / "tb"))
    (run,) = (tmp_path / "tb").iterdir()
    read = events(run)
    for name in NAMES:  # it keeps float32
        assert scalars(read, name) == of_record(learn.recorder.history, name, np.float32)
    assert scalars(read, "epoch") == [(5, 1), (10, 2), (15, 3)]
    picture = read.Images("range test")[0]
    assert (picture.width, picture.height) == (700, 420)
    text = {name: read.Tensors(f"{name}/text_summary")[0] for name in ("settings", "files")}
    assert b"| cycle.lr_max | 0.1 |" in text["settings"].tensor_proto.string_val[0]
    assert str(tmp_path / "best.pt").encode() in text["files"].tensor_proto.string_val[0]


def test_a_name_that_is_taken_in_tensorboard_gets_a_number(tmp_path, events):
    for _ in range(3):
        toy_learner().fit(1, cbs=[TensorBoard(tmp_path, name="run")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-2", "run-3"]
    assert all(len(events(path).Scalars("train_loss")) == 8 for path in tmp_path.iterdir())


# W&B ----------------------------------------------------------------------------------------


def records_of(path):
    """Read the records of W&B's own file: blocks of 32 KiB with a log of parts, as LevelDB's."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little for the head of a part
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole one, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def key_of(item):
    return ".".join(item.nested_key) or item.key


def held_by_wandb(folder):
    """Return the runs that a folder holds, and by step what was logged; config and summary."""
    ids, rows, config, summary = set(), {}, {}, {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in records_of(path):
            if record.HasField("run"):
                ids.add((record.run.run_id, record.run.project))
            for update in (record.config.update, record.run.config.update):
                config |= {key_of(item): json.loads(item.value_json) for item in update}
            summary |= {key_of(i): json.loads(i.value_json) for i in record.summary.update}
            items = {key_of(item): json.loads(item.value_json) for item in record.history.item}
            if items:  # of a step that comes twice the values are the same
                known = rows.setdefault(record.history.step.num or items["_step"], {})
                assert all(known[name] == items[name] for name in known.keys() & items & set(NAMES))
                known |= items
    return ids, rows, config, summary


def test_wandb_has_the_record_offline_in_runs_of_one_id(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def make():
        return WandB("project", mode="offline", folder=tmp_path / "w")

    learn = killed_and_resumed(tmp_path, make)
    wandb.teardown()  # its service writes the end of a finished run a little later
    ids, rows, config, summary = held_by_wandb(tmp_path / "w")
    assert len(ids) == 1
    assert {project for _, project in ids} == {"project"}
    for name in NAMES:
        found = [(step, row[name]) for step, row in sorted(rows.items()) if name in row]
        assert found == of_record(learn.recorder.history, name)
    assert config["cycle.lr_max"] == 0.1
    assert summary["files.best_model"] == str(tmp_path / "best.pt")
    assert len([*(tmp_path / "w").rglob("range test*.png")]) == 1


# MLflow -------------------------------------------------------------------------------------


def test_mlflow_has_the_record_once_in_one_run_of_a_local_store(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)  # where it puts artifacts
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    learn = killed_and_resumed(tmp_path, lambda: MLflow("digits", uri=uri, name="first"))
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    for name in NAMES:
        history = client.get_metric_history(run.info.run_id, name)
        found = sorted((metric.step, metric.value) for metric in history)
        assert found == of_record(learn.recorder.history, name)
    assert run.data.params["cycle.lr_max"] == "0.1"
    assert run.data.tags["files.best_model"] == str(tmp_path / "best.pt")
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["range_test.png"]


def test_mlflow_run_that_is_gone_is_begun_anew_and_one_that_failed_says_so(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    uri, other = (f"sqlite:///{tmp_path / name}.db" for name in ("runs", "other"))
    uris = iter([uri, other])
    learn = killed_and_resumed(tmp_path, lambda: MLflow("digits", uri=next(uris)))
    client = mlflow.MlflowClient(tracking_uri=uri)
    (failed,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert failed.info.status == "FAILED"
    client = mlflow.MlflowClient(tracking_uri=other)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train_loss")
    found = sorted((metric.step, metric.value) for metric in history)
    assert found == of_record(learn.recorder.history, "train_loss")


# All of them --------------------------------------------------------------------------------


def test_range_tests_and_studies_write_nothing(tmp_path, monkeypatch):
    for module in ("tensorboard", "wandb", "mlflow"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    trackers = [
        TensorBoard("tb"),
        WandB("project", mode="offline", folder="w"),
        MLflow("digits", uri="sqlite:///runs.db"),
    ]
    learn = toy_learner(n_batches=4, cbs=trackers)
    learn.lr_find(show_plot=False)
    learn.compare(1, 0.1, ["constant"], seeds=[0])
    learn.diagnose(num_it=20, seeds=[0], wds=(), n_epoch=1, verify=False)
    learn.validate()
    learn.check()
    assert list(tmp_path.iterdir()) == []


def test_of_two_processes_the_first_one_writes_and_goes_on_in_the_same_runs(tmp_path, events):
    for module in ("wandb", "mlflow"):
        pytest.importorskip(module)
    import mlflow

    name = "check_trackers_of_a_fit_that_goes_on"
    found = Job("tracker_checks", 2, tmp_path, name).found()
    assert [each[name] for each in found] == ["", ""], found
    records = [json.loads((tmp_path / f"record-{rank}.json").read_text()) for rank in (0, 1)]
    assert records[0] == records[1]
    (run,) = (tmp_path / "tb").iterdir()
    read = events(run)
    ids, rows, _, _ = held_by_wandb(tmp_path / "w")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs.db'}")
    (first,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert len(ids) == 1
    for series in ("train_loss", "lr", "valid_loss", "accuracy"):
        expected = [(update, value) for update, value in records[0][series]]
        as_float32 = [(update, float(np.float32(value))) for update, value in expected]
        assert scalars(read, series) == as_float32
        assert [(k, row[series]) for k, row in sorted(rows.items()) if series in row] == expected
        history = client.get_metric_history(first.info.run_id, series)
        assert sorted((each.step, each.value) for each in history) == expected


@pytest.mark.parametrize("name", TRACKERS)
def test_the_command_line_makes_each_tracker_and_writes_nothing_yet(name, tmp_path):
    module = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboard"}.get(name)
    if module is not None:
        pytest.importorskip(module)
    assert type(TRACKERS[name](tmp_path / "run")).__name__.lower() in (
        name,
        "csvlogger",
        "jsonlines",
    )
    assert not (tmp_path / "run").exists()
