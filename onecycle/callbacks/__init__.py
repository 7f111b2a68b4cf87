"""The callbacks that come with onecycle, one concern a file; `one_cycle` is the heart."""

from onecycle.callbacks.activation_checkpointing import ActivationCheckpointing
from onecycle.callbacks.activation_stats import ActivationStats
from onecycle.callbacks.attribute_scheduler import AttributeScheduler
from onecycle.callbacks.averaging import EMA, SWA
from onecycle.callbacks.backend_flags import BackendFlags
from onecycle.callbacks.batch_size_schedule import BatchSizeSchedule
from onecycle.callbacks.checkpoint import Checkpoint
from onecycle.callbacks.cuda_graph import CudaGraph
from onecycle.callbacks.ensemble import EnsembleReport, SnapshotEnsemble
from onecycle.callbacks.gradient_norm import GradientNorm
from onecycle.callbacks.gradients import GradientAccumulation, GradientClip
from onecycle.callbacks.json_lines import JSONLines
from onecycle.callbacks.landing import LandOnInterrupt
from onecycle.callbacks.loggers import CSVLogger
from onecycle.callbacks.lr_finder import LRFinder
from onecycle.callbacks.memory_format import ChannelsLast
from onecycle.callbacks.micro_batches import MicroBatches
from onecycle.callbacks.mixing import CutMix, LabelSmoothing, MixUp
from onecycle.callbacks.mlflow import MLflow
from onecycle.callbacks.non_finite import TerminateOnNonFinite
from onecycle.callbacks.one_cycle import MomentumCycler, OneCycleSchedule
from onecycle.callbacks.param_scheduler import ParamScheduler, PlannedScheduler
from onecycle.callbacks.post_mortem import PostMortem
from onecycle.callbacks.precision import MixedPrecision
from onecycle.callbacks.progress import Progress
from onecycle.callbacks.pruning import OptunaPruning
from onecycle.callbacks.recorder import Recorder
from onecycle.callbacks.save_model import SaveModel
from onecycle.callbacks.show_graph import ShowGraph
from onecycle.callbacks.speed import speed_profile
from onecycle.callbacks.spikes import SpikeStop
from onecycle.callbacks.stopping import EarlyStopping, ReduceLROnPlateau
from onecycle.callbacks.tensor_board import TensorBoard
from onecycle.callbacks.throughput import Throughput
from onecycle.callbacks.timeline import Timeline
from onecycle.callbacks.torch_scheduler import TorchScheduler
from onecycle.callbacks.update_ratios import UpdateRatios
from onecycle.callbacks.validate import Validate
from onecycle.callbacks.wandb import WandB
from onecycle.callbacks.when import When

__all__ = [
    "EMA",
    "SWA",
    "ActivationCheckpointing",
    "ActivationStats",
    "AttributeScheduler",
    "BackendFlags",
    "BatchSizeSchedule",
    "CSVLogger",
    "ChannelsLast",
    "Checkpoint",
    "CudaGraph",
    "CutMix",
    "EarlyStopping",
    "EnsembleReport",
    "GradientAccumulation",
    "GradientClip",
    "GradientNorm",
    "JSONLines",
    "LRFinder",
    "LabelSmoothing",
    "LandOnInterrupt",
    "MLflow",
    "MicroBatches",
    "MixUp",
    "MixedPrecision",
    "MomentumCycler",
    "OneCycleSchedule",
    "OptunaPruning",
    "ParamScheduler",
    "PlannedScheduler",
    "PostMortem",
    "Progress",
    "Recorder",
    "ReduceLROnPlateau",
    "SaveModel",
    "ShowGraph",
    "SnapshotEnsemble",
    "SpikeStop",
    "TensorBoard",
    "TerminateOnNonFinite",
    "Throughput",
    "Timeline",
    "TorchScheduler",
    "UpdateRatios",
    "Validate",
    "WandB",
    "When",
    "speed_profile",
]
