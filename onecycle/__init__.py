"""Train any PyTorch model with the 1cycle policy.

A small `Learner` runs the batch loop and fires events; callbacks drive the hyperparameters and
collect the record. `onecycle.events` draws the loop.
"""

from onecycle.callback import Callback, Stage
from onecycle.callbacks.checkpoint import SaveModel
from onecycle.callbacks.gradients import GradientAccumulation, GradientClip
from onecycle.callbacks.loggers import CSVLogger
from onecycle.callbacks.lr_finder import LRFinder, LRFindResult
from onecycle.callbacks.param_schedule import MomentumCycler, OneCycleSchedule, ParamScheduler
from onecycle.callbacks.precision import MixedPrecision
from onecycle.callbacks.progress import Progress
from onecycle.callbacks.recorder import Recorder
from onecycle.callbacks.resume import Checkpoint
from onecycle.callbacks.stopping import EarlyStopping, ReduceLROnPlateau, TerminateOnNonFinite
from onecycle.data import DataLoaders, TensorLoader
from onecycle.errors import (
    Cancel,
    CancelBatch,
    CancelEpoch,
    CancelFit,
    CancelStep,
    CancelTrain,
    CancelValid,
    CheckpointError,
    MissingCallbackError,
    OnecycleError,
    ScheduleConflictError,
    UnknownEventError,
)
from onecycle.learner import Learner, Predictions
from onecycle.metrics import (
    MeanMetric,
    accuracy,
    binary_accuracy,
    error_rate,
    mae,
    mse,
    rmse,
    top_k_accuracy,
)
from onecycle.schedule_plot import plot_schedule
from onecycle.schedules import (
    Schedule,
    constant,
    cosine,
    exponential,
    join,
    linear,
    momentum_cycle,
    one_cycle,
    polynomial,
    step,
    three_phase,
    torch_one_cycle,
)
from onecycle.suggestions import minimum, slide, steep, valley

__all__ = [
    "CSVLogger",
    "Callback",
    "Cancel",
    "CancelBatch",
    "CancelEpoch",
    "CancelFit",
    "CancelStep",
    "CancelTrain",
    "CancelValid",
    "Checkpoint",
    "CheckpointError",
    "DataLoaders",
    "EarlyStopping",
    "GradientAccumulation",
    "GradientClip",
    "LRFindResult",
    "LRFinder",
    "Learner",
    "MeanMetric",
    "MissingCallbackError",
    "MixedPrecision",
    "MomentumCycler",
    "OneCycleSchedule",
    "OnecycleError",
    "ParamScheduler",
    "Predictions",
    "Progress",
    "Recorder",
    "ReduceLROnPlateau",
    "SaveModel",
    "Schedule",
    "ScheduleConflictError",
    "Stage",
    "TensorLoader",
    "TerminateOnNonFinite",
    "UnknownEventError",
    "accuracy",
    "binary_accuracy",
    "constant",
    "cosine",
    "error_rate",
    "exponential",
    "join",
    "linear",
    "mae",
    "minimum",
    "momentum_cycle",
    "mse",
    "one_cycle",
    "plot_schedule",
    "polynomial",
    "rmse",
    "slide",
    "steep",
    "step",
    "three_phase",
    "top_k_accuracy",
    "torch_one_cycle",
    "valley",
]
