"""Train any PyTorch model with the 1cycle policy.

    learn = Learner((train, valid), model, loss_func, metrics=[accuracy])
    found = learn.lr_find()                          # suggests a rate, leaves nothing behind
    learn.fit_one_cycle(5, lr_max=found.suggestion)  # up and down once
    learn.recorder.plot_loss()                       # of every update
    learn.get_preds()                                # predictions and targets

A small `Learner` runs the batch loop and fires events; callbacks, classes with methods named
after events, drive the hyperparameters and collect the record. `onecycle.core.events` draws the
loop. Who comes from another library and types its names is told ours.
"""

import typing

from onecycle.callbacks import (
    EMA,
    SWA,
    ActivationCheckpointing,
    ActivationStats,
    AttributeScheduler,
    BackendFlags,
    BatchSizeSchedule,
    ChannelsLast,
    Checkpoint,
    CSVLogger,
    CudaGraph,
    CutMix,
    EarlyStopping,
    EnsembleReport,
    GradientAccumulation,
    GradientClip,
    GradientNorm,
    JSONLines,
    LabelSmoothing,
    LandOnInterrupt,
    LRFinder,
    MicroBatches,
    MixedPrecision,
    MixUp,
    MLflow,
    MomentumCycler,
    OneCycleSchedule,
    OptunaPruning,
    ParamScheduler,
    PlannedScheduler,
    PostMortem,
    Progress,
    Recorder,
    ReduceLROnPlateau,
    SaveModel,
    ShowGraph,
    SnapshotEnsemble,
    SpikeStop,
    TensorBoard,
    TerminateOnNonFinite,
    Throughput,
    Timeline,
    TorchScheduler,
    UpdateRatios,
    Validate,
    WandB,
    When,
    speed_profile,
)
from onecycle.core.callback import Callback, Stage
from onecycle.data.loaders import DataLoaders, TensorLoader
from onecycle.data.seeded import SeededDataset
from onecycle.data.seeds import seed_everything
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
from onecycle.optim.several import muon_groups
from onecycle.optim.stepper import Stepper
from onecycle.parallel.launching import launch
from onecycle.range_test.knee import knee
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
from onecycle.record.weights import token_weight
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
    polynomial_decay,
    step,
)
from onecycle.schedules.torch_like import (
    torch_cosine,
    torch_cyclic,
    torch_linear,
    torch_one_cycle,
    torch_polynomial,
    torch_step,
    torch_warm_restarts,
)
from onecycle.studies.comparison import Comparison
from onecycle.studies.diagnosis import Diagnosis
from onecycle.studies.plateau import Plateau
from onecycle.studies.regularization import RegularizationReport
from onecycle.testing import check_callback, toy_learner
from onecycle.training.freezing import head_splitter
from onecycle.training.predictor import Predictor, load_predictor
from onecycle.vision import Cutout, RandomCrop, RandomFlip, lenet, resnet9, resnet56
from onecycle.vision.resizing import ProgressiveResizing

__all__ = [  # noqa: RUF022 - in plain order, which a test checks; ruff puts EMA first
    "ActivationCheckpointing",
    "ActivationStats",
    "AttributeScheduler",
    "BackendFlags",
    "BatchSizeSchedule",
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
    "GradientNorm",
    "JSONLines",
    "LRFindResult",
    "LRFinder",
    "LabelSmoothing",
    "LandOnInterrupt",
    "Learner",
    "MLflow",
    "MeanMetric",
    "MicroBatches",
    "MissingCallbackError",
    "MixUp",
    "MixedPrecision",
    "MomentumCycler",
    "OneCycleSchedule",
    "OnecycleError",
    "OptunaPruning",
    "ParamScheduler",
    "PlannedScheduler",
    "Plateau",
    "PostMortem",
    "Predictions",
    "Predictor",
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
    "ShowGraph",
    "SnapshotEnsemble",
    "SpikeStop",
    "Stage",
    "Stepper",
    "TensorBoard",
    "TensorLoader",
    "TerminateOnNonFinite",
    "Throughput",
    "Timeline",
    "TorchScheduler",
    "UnknownEventError",
    "UpdateRatios",
    "Validate",
    "WandB",
    "When",
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
    "head_splitter",
    "join",
    "join_steps",
    "knee",
    "launch",
    "lenet",
    "linear",
    "load_predictor",
    "mae",
    "minimum",
    "momentum_cycle",
    "mse",
    "muon_groups",
    "one_cycle",
    "plot_schedule",
    "polynomial",
    "polynomial_decay",
    "resnet56",
    "resnet9",
    "rmse",
    "seed_everything",
    "sgdr",
    "slide",
    "smith_momentum",
    "smith_one_cycle",
    "speed_profile",
    "steep",
    "step",
    "three_phase",
    "three_phase_momentum",
    "token_weight",
    "top_k_accuracy",
    "torch_cosine",
    "torch_cyclic",
    "torch_linear",
    "torch_one_cycle",
    "torch_polynomial",
    "torch_step",
    "torch_warm_restarts",
    "toy_learner",
    "valley",
    "warmup_stable_decay",
]

if not typing.TYPE_CHECKING:  # a type checker must go on to refuse what is not there

    def __getattr__(name: str) -> typing.NoReturn:
        from onecycle.elsewhere import refuse_class

        refuse_class(name)
