"""Names of fastai, Lightning, Keras and others, and what they are called here.

Nobody has to unlearn them alone: an event, an attribute, a keyword or a class of another library
is refused in one sentence that has the name here. What is written daily has no alias, so that code
reads the same everywhere.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def _by_name(ours: Mapping[str, str]) -> dict[str, str]:
    """Turn a table from what is said here to names of elsewhere around."""
    return {there: here for here, names in ours.items() for there in names.split()}


#: What the events of Keras, Lightning, transformers and fastai are called here.
_EVENTS = {
    "before_fit": "on_fit_start on_train_start on_train_begin begin_fit on_sanity_check_start",
    "after_fit": "on_fit_end on_train_end after_train_end",
    "cleanup_fit": "on_exception on_teardown cleanup",
    "before_epoch": "on_epoch_begin on_epoch_start on_train_epoch_start begin_epoch",
    "after_epoch": "on_epoch_end on_train_epoch_end end_epoch",
    "before_train": "begin_train",
    "before_batch": "on_batch_begin on_batch_start on_train_batch_begin on_train_batch_start "
    "on_validation_batch_start on_test_batch_begin on_step_begin begin_batch",
    "after_pred": "on_loss_begin",
    "before_backward": "on_before_backward on_backward_begin",
    "after_backward": "on_after_backward on_backward_end",
    "before_step": "on_before_optimizer_step on_pre_optimizer_step on_optimizer_step_start",
    "after_step": "on_before_zero_grad on_optimizer_step on_step_end",
    "after_batch": "on_batch_end on_train_batch_end on_validation_batch_end on_test_batch_end "
    "on_substep_end end_batch",
    "before_validate": "on_validation_start on_validation_epoch_start on_validation_begin "
    "on_test_begin begin_validate",
    "after_validate": "on_validation_end on_validation_epoch_end on_test_end on_evaluate "
    "end_validate",
}
_SUBCLASS = (
    "a learner calls predict_batch(self, batch) and compute_loss(self, pred, batch), which a "
    "subclass of Learner may override"
)
_STAGE = "the order is that of stage (Stage.PREPARE, RECORD, REACT or SAVE), then that of the list"
_METHODS = {
    **_by_name({f"here it is {here!r}": there for here, there in _EVENTS.items()}),
    "training_step": _SUBCLASS,
    "validation_step": _SUBCLASS,
    "test_step": _SUBCLASS,
    "configure_optimizers": "give the learner opt_func= or opt=",
    "order": _STAGE,
    "run_after": _STAGE,
    "run_before": _STAGE,
    "on_save_checkpoint": "here it is 'state_dict', which returns what must survive a restart",
    "on_load_checkpoint": "here it is 'load_state_dict'",
}

_FIT_TAKES = "fit() and fit_one_cycle() take the number of epochs"
#: By advice the keywords that no other keyword replaces.
_KEYWORD_ADVICE = _by_name(
    {
        "policy= is 'cosine', 'linear', 'three_phase' or a Schedule": "anneal_strategy three_phase",
        "dl= is a loader, by default that of the learner": "ds_idx dataloaders",
        _FIT_TAKES: "epochs num_epochs n_epochs max_epochs cyc_len num_train_epochs",
        "give the learner the loaders: Learner((train, valid), ...)": "train_dataloaders "
        "val_dataloaders train_dataset eval_dataset validation_data datamodule",
        "learn.check() tries a batch of each loader, fit(..., max_updates=n) ends after n "
        "updates": "fast_dev_run overfit_batches num_sanity_val_steps",
        "fit(..., steps_per_epoch=n) takes n batches an epoch": "limit_train_batches",
        "cbs=[MixedPrecision()]": "precision mixed_precision fp16 bf16 amp",
        "cbs=[GradientClip(max_norm)]": "gradient_clip_val max_grad_norm clip_grad",
        "cbs=[GradientAccumulation(n_batches)]": "accumulate_grad_batches "
        "gradient_accumulation_steps",
        "with learn.no_bar(): ... runs without the bar": "enable_progress_bar verbose "
        "progress_bar_refresh_rate",
        "learn.summary() describes the model": "enable_model_summary",
        "cbs=[Checkpoint(folder)], and fit(..., resume=folder) goes on": "ckpt_path "
        "resume_from_checkpoint enable_checkpointing default_root_dir reset_opt start_epoch "
        "initial_epoch",
        "learn.save() and the callbacks take paths": "path model_dir",
        "the batches are those of the loaders": "bs batch_size per_device_train_batch_size",
        "seed= fixes the order of the data, torch.manual_seed the weights": "deterministic",
        "SaveModel(restore_best=True) does so": "restore_best_weights",
        "freeze(train_bn=False) keeps them as they are": "train_bn",
        "a schedule is a callback: cbs=[TorchScheduler(...)], cbs=[ParamScheduler(...)]": "sched "
        "scheduler lr_scheduler",
        "vision has RandomFlip, RandomCrop and Cutout as callbacks": "item_tfms batch_tfms tfms "
        "ds_tfms",
    }
)
#: By a keyword here those of elsewhere.
_KEYWORDS = {
    "lr_max": "max_lr peak_lr base_lr learning_rate lr lrs",
    "lr": "max_lr peak_lr base_lr learning_rate lr_max lrs",
    "base_lr": "max_lr lr lr_max learning_rate",
    "end_lr": "max_lr lr_max",
    "start_lr": "min_lr",
    "num_it": "num_training num_iter num_iters n_iter",
    "suggest_funcs": "suggestions suggestion suggest_func",
    "stop_div": "stop early_stop_threshold",
    "show_plot": "show plot",
    "n_epoch": "epochs num_epochs n_epochs max_epochs cyc_len nb_epoch num_train_epochs",
    "epochs": "n_epoch n_epochs num_epochs max_epochs",
    "freeze_epochs": "frozen_epochs",
    "max_updates": "max_steps total_steps steps",
    "steps_per_epoch": "limit_train_batches",
    "cbs": "callbacks callback callback_fns",
    "div": "div_factor",
    "div_final": "final_div final_div_factor",
    "pct_start": "pct warmup_ratio start_pct",
    "moms": "momentums betas max_momentum base_momentum cycle_momentum",
    "wd": "weight_decay wds",
    "resume": "ckpt_path resume_from_checkpoint start_epoch initial_epoch",
    "loss_func": "loss loss_fn crit criterion",
    "opt_func": "opt_fn optimizer_class",
    "opt": "optimizer optimizers",
    "metrics": "metric compute_metrics",
    "dls": "data dataloaders databunch dbunch",
    "device": "accelerator devices gpus",
    "with_inputs": "with_input",
    "path": "fname filepath filename dirpath file name",
    "folder": "dirpath path fname filepath dirname",
    "keep": "save_top_k save_total_limit max_to_keep n_saved",
    "every": "every_epoch save_freq every_n_epochs every_n_train_steps save_steps period",
    "mode": "comp",
    "patience": "early_stopping_patience",
    "factor": "gamma",
    "n_batches": "n_acc n_steps accumulation_steps",
    "max_norm": "clip_norm clipnorm gradient_clip_val",
    "max_value": "clip_value clipvalue clip",
    "batch_size": "bs",
    "valid_batch_size": "val_bs",
    "size": "img_size image_size sz",
    "with_opt": "with_optimizer load_opt strict",
}

#: By advice the attributes of learners.
_OF_LEARNERS = _by_name(
    {
        "give a fit cbs=[...], or write with learn.added_cbs([...])": "add_cb add_cbs "
        "add_callback add_callbacks",
        "write with learn.removed_cbs(...)": "remove_cb remove_cbs remove_callback",
        "cbs=[MixedPrecision()]": "to_bf16 to_native_fp16 half",
        "leave out MixedPrecision": "to_fp32",
        "Learner(device=...) moves the model": "cuda to cpu",
        "fit_flat_cos": "fit_fc",
        "fit_sgdr": "fit_sgd_warm",
        "lr_find": "lr_range_test find_lr range_test",
        "lr_find(valid=True)": "lr_find2",
        "validate": "evaluate test",
        "confusion_matrix().plot()": "plot_confusion_matrix interpret",
        "top_losses().plot()": "plot_top_losses",
        "find_batch_size": "scale_batch_size tune",
        "nothing to do: a learner finds the others that torchrun or onecycle.launch started": (
            "distrib_ctx to_distributed to_parallel"
        ),
        "get_preds": "predict_proba predict_with_targs predict_dl",
        "fit or fit_one_cycle": "train run train_model fit_generator",
        "loss_func": "loss_fn crit criterion",
        "opt": "optimizer optimizers",
        "dls": "data dbunch datamodule",
        "dls.train": "train_dl train_dataloader",
        "dls.valid": "valid_dl val_dataloader",
        "cbs": "callbacks",
        "save": "save_checkpoint save_weights",
        "load": "load_checkpoint load_weights load_from_checkpoint",
        "fit(..., resume=folder), with a Checkpoint(folder) among its cbs": "load_cycle resume",
        "total_updates, or n_updates in this fit": "global_step train_iter",
        "epoch": "current_epoch",
        "raise CancelFit(reason)": "stop_training should_stop",
        "recorder.history": "history logged_metrics callback_metrics",
        "recorder.history.series(name).append(total_updates, value)": "log log_dict",
        "recorder.history['train_loss'], and recorder.plot_loss() smooths": "smooth_loss",
        "groups.get('lr')": "lrs current_lr",
        "cbs=[TorchScheduler(...)] or cbs=[ParamScheduler(...)]": "sched lr_schedulers "
        "lr_scheduler",
        "with learn.no_bar()": "no_logging no_mbar",
        "learn.opt is there from the beginning; opt_func= or opt= choose it": "create_opt compile "
        "set_optimizer",
        "learn itself: there is no trainer beside it": "trainer learn learner",
        "freeze(train_bn=False)": "set_bn_eval bn_freeze",
        "model.parameters()": "parameters trainable_parameters",
        "model.state_dict(), or save(path) with the optimizer": "state_dict",
    }
)
_OF_RECORDERS = _by_name(
    {
        "history[name].values, by the names in history": "losses lrs moms val_losses iters",
        "list(history)": "metric_names names",
        "plot_loss": "plot_losses",
        "plot_sched": "plot_lr plot_lrs",
        "plot_loss, plot_sched, plot_metrics or plot_lr_find": "plot",
        "to_csv(path)": "save",
    }
)
_OF_LOADERS = _by_name(
    {
        "train": "train_dl train_dataloader",
        "valid": "valid_dl val_dl val_dataloader",
        "train.dataset, of a DataLoader": "train_ds",
        "valid.dataset, of a DataLoader": "valid_ds val_ds",
        "next(iter(dls.train))": "one_batch",
        "learn.show_batch()": "show_batch show",
        "classes": "vocab",
        "Learner(device=...) moves the batches": "cuda to",
    }
)
_OF_CALLBACKS = _by_name(
    {
        "an event is given the learner, as in def after_batch(self, learn), and learn has it": (
            "learn learner trainer model opt dls dl xb yb pred loss epoch n_epoch iter n_iter "
            "training recorder pct_train"
        ),
    }
)

#: By advice the names that the package itself is asked for.
_NAMES = _by_name(
    {
        "Learner": "Trainer LightningModule LightningDataModule Model NeuralNet",
        "Learner(dls, model, ..., splitter=head_splitter)": "vision_learner cnn_learner "
        "tabular_learner create_cnn",
        "vision.image_folder(path, size)": "ImageDataLoaders ImageDataBunch ImageList ImageBlock",
        "DataLoaders, or a pair of any two iterables of batches": "DataBunch DataBlock Datasets",
        "SaveModel, or Checkpoint to go on after a crash": "SaveModelCallback ModelCheckpoint "
        "BackupAndRestore",
        "load_predictor": "load_learner",
        "learn.confusion_matrix() and learn.top_losses(), which have a plot()": (
            "ClassificationInterpretation Interpretation SegmentationInterpretation"
        ),
        "learn.show_batch()": "show_batch",
        "learn.show_results()": "show_results",
        "ShowGraph": "ShowGraphCallback",
        "TensorBoard": "TensorBoardCallback TensorBoardLogger",
        "WandB": "WandbCallback WandbLogger",
        "MLflow": "MLflowCallback MLFlowLogger",
        "Throughput": "ThroughputMonitor",
        "launch": "notebook_launcher",
        "learn.find_batch_size()": "BatchSizeFinder",
        "EarlyStopping": "EarlyStoppingCallback EarlyStopper",
        "ReduceLROnPlateau": "ReduceLROnPlateauCallback",
        "TerminateOnNonFinite": "TerminateOnNaN TerminateOnNaNCallback TerminateOnNan",
        "MixedPrecision": "NativeMixedPrecision FP16 ModelToHalf GradScaler",
        "GradientAccumulation": "GradientAccumulationScheduler",
        "GradientClip": "GradientClipping",
        "Progress": "ProgressCallback ProgressBar TQDMProgressBar RichProgressBar",
        "CSVLogger": "CSVLoggerCallback",
        "MixUp": "MixUpCallback MixUpLoss",
        "EMA": "EMACallback ModelEMA WeightAveraging ExponentialMovingAverage",
        "SWA": "StochasticWeightAveraging",
        "LabelSmoothing, a callback beside any loss": "LabelSmoothingCrossEntropy",
        "LRFinder, or learn.lr_find()": "LearningRateFinder LRFind lr_find",
        "OneCycleSchedule, or learn.fit_one_cycle()": "OneCycleLR OneCycleScheduler "
        "OneCycleCallback OneCycle",
        "torch_cyclic, as a ParamScheduler's schedule": "CyclicLR",
        "ParamScheduler": "LearningRateScheduler HyperparameterScheduler",
        "learn.recorder.history, which has every update": "LearningRateMonitor History",
        "Callback(after_batch=f)": "LambdaCallback",
        "Callback": "TrainerCallback LearnerCallback Event Events",
        "MeanMetric": "AvgMetric AccumMetric AverageMeter",
        "learn.fit(..., steps_per_epoch=n)": "ShortEpochCallback",
        "CancelFit": "CancelFitException",
        "CancelEpoch": "CancelEpochException",
        "CancelTrain": "CancelTrainException",
        "CancelValid": "CancelValidException",
        "CancelBatch": "CancelBatchException",
        "CancelStep": "CancelStepException CancelBackwardException",
        "join": "combine_scheds SequentialLR",
        "one_cycle": "combined_cos",
        "cosine": "SchedCos annealing_cos CosineAnnealingLR",
        "linear": "SchedLin annealing_linear",
        "exponential": "SchedExp",
        "polynomial": "SchedPoly",
        "constant": "SchedNo",
        "seed_everything": "set_seed fix_seed",
        "torch.nn.functional.cross_entropy": "CrossEntropyLossFlat",
    }
)
_OF_ANY: dict[str, dict[str, str]] = {
    "Learner": _OF_LEARNERS,
    "Recorder": _OF_RECORDERS,
    "DataLoaders": _OF_LOADERS,
    "Callback": _OF_CALLBACKS,
}


def explain_foreign_name(name: str) -> str | None:
    """Return what a method of another library's callback or module is here, or ``None``.

    Example:
        >>> explain_foreign_name("on_train_epoch_end")
        "here it is 'after_epoch'"
    """
    return _METHODS.get(name)


def explain_unknown_event(
    owner: str, name: str, events: Collection[str], prefixes: Sequence[str]
) -> str:
    """Say that a name is no event, and which one may be meant.

    Args:
        owner: Who defines it.
        name: The name.
        events: The events that there are.
        prefixes: What the names of events begin with.

    Example:
        >>> explain_unknown_event("Mine", "after_bach", ["after_batch", "after_fit"], ["after_"])
        "Mine defines 'after_bach', which looks like an event and is none: did you mean ..."
    """
    if elsewhere := explain_foreign_name(name):
        return f"{owner} defines {name!r}, a name of another library: {elsewhere}"
    near = difflib.get_close_matches(name, events, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"the events are {', '.join(events)}."
    return (
        f"{owner} defines {name!r}, which looks like an event and is none: {hint} "
        f"(A helper method must not begin with {', '.join(prefixes)}.)"
    )


def refuse_class(name: str) -> NoReturn:
    """Refuse a name that the package does not have; one of another library with ours.

    Raises:
        ImportError: For a name of another library: ``from onecycle import Name`` shows the words
            of no other error.
        AttributeError: For any other.
    """
    if name in _NAMES:
        raise ImportError(
            f"onecycle has no {name!r}, a name of another library; here: {_NAMES[name]}",
            name="onecycle",
        )
    raise AttributeError(f"module 'onecycle' has no attribute {name!r}", name=name)


class SaysOurNames:
    """Base of classes whose missing attributes are answered with the name here.

    Python asks it only for what is not there, so that all that is costs as much as before.
    """

    _called: ClassVar[str] = "Learner"

    if not TYPE_CHECKING:  # which must go on to refuse what is not there

        def __getattr__(self, name: str) -> NoReturn:
            if hasattr(type(self), name):  # a property that raised an error of its own
                object.__getattribute__(self, name)
            raise _no_attribute(self, name, _OF_ANY[self._called].get(name))


class NotHere:
    """An attribute of another library's learner: who reads or sets it is told what is here.

    Setting it would do nothing otherwise, without a word.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        if obj is not None:
            self._refuse(obj)
        return self

    def __set__(self, obj: Any, value: object) -> None:
        self._refuse(obj)

    def _refuse(self, obj: Any) -> NoReturn:
        raise _no_attribute(obj, self._name, _OF_LEARNERS[self._name])


def _no_attribute(obj: object, name: str, here: str | None) -> AttributeError:
    said = f"{type(obj).__name__!r} object has no attribute {name!r}"
    if here is not None:
        said += f", a name of another library; here: {here}"
    return AttributeError(said, name=name, obj=obj)


def says_our_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function refuse a keyword that it does not take with the one that is meant.

    Example:
        >>> @says_our_keywords
        ... def fit(n_epoch, lr=None): ...
        >>> fit(1, learning_rate=0.1)
        Traceback (most recent call last):
        TypeError: fit() takes no 'learning_rate'; here: lr
    """
    parameters = inspect.signature(function).parameters
    known = frozenset(parameters)
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        raise TypeError(f"{function.__qualname__} takes any keyword")

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not known.issuperset(kwargs):
            is_class = function.__name__ == "__init__"
            name = type(args[0]).__name__ if is_class else function.__name__
            _refuse_keyword(name, known, kwargs)
        return function(*args, **kwargs)

    return checked


def _refuse_keyword(function: str, known: frozenset[str], given: Mapping[str, Any]) -> NoReturn:
    name = next(each for each in given if each not in known)
    ours = [here for here in _KEYWORDS if here in known and name in _KEYWORDS[here].split()]
    free = [here for here in ours if here not in given]
    near = difflib.get_close_matches(name, sorted(known - {"self"}), n=1)
    said = f"{function}() takes no {name!r}"
    if free:
        said += f"; here: {free[0]}"
    elif name in _KEYWORD_ADVICE:
        said += f"; here: {_KEYWORD_ADVICE[name]}"
    elif near:
        said += f": did you mean {near[0]!r}?"
    else:
        said += f"; it takes {', '.join(sorted(known - {'self'}))}"
    raise TypeError(said)
