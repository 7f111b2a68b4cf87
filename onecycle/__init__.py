"""Train any PyTorch model with the 1cycle policy.

A small `Learner` runs the batch loop and fires events; callbacks drive the hyperparameters and
collect the record. `onecycle.core.events` draws the loop.
"""

from onecycle.callbacks.attribute_scheduler import AttributeScheduler
from onecycle.callbacks.averaging import EMA, SWA
from onecycle.callbacks.backend_flags import BackendFlags
from onecycle.callbacks.cuda_graph import CudaGraph
from onecycle.callbacks.ensemble import EnsembleReport, SnapshotEnsemble
from onecycle.callbacks.gradients import GradientAccumulation, GradientClip
from onecycle.callbacks.landing import LandOnInterrupt
from onecycle.callbacks.loggers import CSVLogger
from onecycle.callbacks.lr_finder import LRFinder
from onecycle.callbacks.memory_format import ChannelsLast
from onecycle.callbacks.mixing import CutMix, LabelSmoothing, MixUp
from onecycle.callbacks.non_finite import TerminateOnNonFinite
from onecycle.callbacks.param_scheduler import (
    MomentumCycler,
    OneCycleSchedule,
    ParamScheduler,
    PlannedScheduler,
)
from onecycle.callbacks.post_mortem import PostMortem
from onecycle.callbacks.precision import MixedPrecision
from onecycle.callbacks.progress import Progress
from onecycle.callbacks.recorder import Recorder
from onecycle.callbacks.resume import Checkpoint
from onecycle.callbacks.save_model import SaveModel
from onecycle.callbacks.speed import speed_profile
from onecycle.callbacks.stopping import EarlyStopping, ReduceLROnPlateau
from onecycle.callbacks.torch_scheduler import TorchScheduler
from onecycle.core.callback import Callback, Stage
from onecycle.data.loaders import DataLoaders, TensorLoader
from onecycle.data.seeded import SeededDataset
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
from onecycle.learner import Learner
from onecycle.range_test.result import LRFindResult
from onecycle.range_test.rules import minimum, slide, steep, valley
from onecycle.range_test.sweeps import RangeTests
from onecycle.record.metrics import (
    MeanMetric,
    accuracy,
    binary_accuracy,
    error_rate,
    mae,
    mse,
    rmse,
    top_k_accuracy,
)
from onecycle.record.predictions import Predictions
from onecycle.schedules.plot import plot_schedule
from onecycle.schedules.policies import (
    clr_beta,
    clr_beta_momentum,
    fastai1_momentum,
    fastai1_one_cycle,
    flat_cos,
    momentum_cycle,
    one_cycle,
    sgdr,
    smith_momentum,
    smith_one_cycle,
    three_phase,
    three_phase_momentum,
    warmup_stable_decay,
)
from onecycle.schedules.shapes import (
    Schedule,
    constant,
    cosine,
    exponential,
    join,
    join_steps,
    linear,
    polynomial,
    step,
)
from onecycle.schedules.torch_like import (
    torch_cosine,
    torch_cyclic,
    torch_linear,
    torch_one_cycle,
    torch_step,
    torch_warm_restarts,
)
from onecycle.studies.comparison import Comparison
from onecycle.studies.diagnosis import Diagnosis, Plateau
from onecycle.studies.regularization import RegularizationReport
from onecycle.testing import check_callback, toy_learner
from onecycle.vision import Cutout, RandomCrop, RandomFlip, lenet, resnet9, resnet56
from onecycle.vision.resizing import ProgressiveResizing

__all__ = [  # noqa: RUF022 - in plain order, which a test checks; ruff puts EMA first
    "AttributeScheduler",
    "BackendFlags",
    "CSVLogger",
    "Callback",
    "Cancel",
    "CancelBatch",
    "CancelEpoch",
    "CancelFit",
    "CancelStep",
    "CancelTrain",
    "CancelValid",
    "ChannelsLast",
    "Checkpoint",
    "CheckpointError",
    "Comparison",
    "CudaGraph",
    "CutMix",
    "Cutout",
    "DataLoaders",
    "Diagnosis",
    "EMA",
    "EarlyStopping",
    "EnsembleReport",
    "GradientAccumulation",
    "GradientClip",
    "LRFindResult",
    "LRFinder",
    "LabelSmoothing",
    "LandOnInterrupt",
    "Learner",
    "MeanMetric",
    "MissingCallbackError",
    "MixUp",
    "MixedPrecision",
    "MomentumCycler",
    "OneCycleSchedule",
    "OnecycleError",
    "ParamScheduler",
    "PlannedScheduler",
    "Plateau",
    "PostMortem",
    "Predictions",
    "Progress",
    "ProgressiveResizing",
    "RandomCrop",
    "RandomFlip",
    "RangeTests",
    "Recorder",
    "ReduceLROnPlateau",
    "RegularizationReport",
    "SWA",
    "SaveModel",
    "Schedule",
    "ScheduleConflictError",
    "SeededDataset",
    "SnapshotEnsemble",
    "Stage",
    "TensorLoader",
    "TerminateOnNonFinite",
    "TorchScheduler",
    "UnknownEventError",
    "accuracy",
    "binary_accuracy",
    "check_callback",
    "clr_beta",
    "clr_beta_momentum",
    "constant",
    "cosine",
    "error_rate",
    "exponential",
    "fastai1_momentum",
    "fastai1_one_cycle",
    "flat_cos",
    "join",
    "join_steps",
    "lenet",
    "linear",
    "mae",
    "minimum",
    "momentum_cycle",
    "mse",
    "one_cycle",
    "plot_schedule",
    "polynomial",
    "resnet56",
    "resnet9",
    "rmse",
    "sgdr",
    "slide",
    "smith_momentum",
    "smith_one_cycle",
    "speed_profile",
    "steep",
    "step",
    "three_phase",
    "three_phase_momentum",
    "top_k_accuracy",
    "torch_cosine",
    "torch_cyclic",
    "torch_linear",
    "torch_one_cycle",
    "torch_step",
    "torch_warm_restarts",
    "toy_learner",
    "valley",
    "warmup_stable_decay",
]
