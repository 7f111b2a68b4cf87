"""The callbacks that come with onecycle, one concern a file; `one_cycle` is the heart."""

from onecycle.callbacks.attribute_scheduler import AttributeScheduler
from onecycle.callbacks.averaging import EMA, SWA
from onecycle.callbacks.backend_flags import BackendFlags
from onecycle.callbacks.checkpoint import Checkpoint
from onecycle.callbacks.cuda_graph import CudaGraph
from onecycle.callbacks.ensemble import EnsembleReport, SnapshotEnsemble
from onecycle.callbacks.gradients import GradientAccumulation, GradientClip
from onecycle.callbacks.landing import LandOnInterrupt
from onecycle.callbacks.loggers import CSVLogger
from onecycle.callbacks.lr_finder import LRFinder
from onecycle.callbacks.memory_format import ChannelsLast
from onecycle.callbacks.mixing import CutMix, LabelSmoothing, MixUp
from onecycle.callbacks.non_finite import TerminateOnNonFinite
from onecycle.callbacks.one_cycle import MomentumCycler, OneCycleSchedule
from onecycle.callbacks.param_scheduler import ParamScheduler, PlannedScheduler
from onecycle.callbacks.post_mortem import PostMortem
from onecycle.callbacks.precision import MixedPrecision
from onecycle.callbacks.progress import Progress
from onecycle.callbacks.recorder import Recorder
from onecycle.callbacks.save_model import SaveModel
from onecycle.callbacks.speed import speed_profile
from onecycle.callbacks.stopping import EarlyStopping, ReduceLROnPlateau
from onecycle.callbacks.torch_scheduler import TorchScheduler
from onecycle.callbacks.validate import Validate
from onecycle.callbacks.when import When

__all__ = [
    "EMA",
    "SWA",
    "AttributeScheduler",
    "BackendFlags",
    "CSVLogger",
    "ChannelsLast",
    "Checkpoint",
    "CudaGraph",
    "CutMix",
    "EarlyStopping",
    "EnsembleReport",
    "GradientAccumulation",
    "GradientClip",
    "LRFinder",
    "LabelSmoothing",
    "LandOnInterrupt",
    "MixUp",
    "MixedPrecision",
    "MomentumCycler",
    "OneCycleSchedule",
    "ParamScheduler",
    "PlannedScheduler",
    "PostMortem",
    "Progress",
    "Recorder",
    "ReduceLROnPlateau",
    "SaveModel",
    "SnapshotEnsemble",
    "TerminateOnNonFinite",
    "TorchScheduler",
    "Validate",
    "When",
    "speed_profile",
]
