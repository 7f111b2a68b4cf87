"""Several processes: sharing the work, and training one model in all of them.

``torchrun --nproc-per-node 4 train.py`` starts a script four times. The learner that it makes finds
the others, and a fit is that of one process whose batch is as large as those of all together:

- Each takes its part of every batch, by position: nothing comes twice, is padded or left out. The
  loader's batch size is that of one process. See `onecycle.parallel.shards`.
- torch's DistributedDataParallel takes the gradients together; losses count by their samples, or by
  what `Learner.loss_weight` says. See `onecycle.parallel.wrapped`.
- The recorded loss, the validation loss and the metrics are those over all samples, the same number
  in every process; so what is decided by them is decided alike. What a callback of the user's
  cancels in one process is cancelled in all, at the same event: see `onecycle.parallel.agreed`.
- The first process prints, draws, logs and writes. Inference (``validate``, ``get_preds``,
  ``predict``) asks no other process: each predicts the whole loader for itself.
- A checkpoint goes on with the same number of processes in the same bits, and with another number,
  or one, with the same samples in the same order; it keeps the batch of all.
- Where one process fails, the others end with its error.

Not the same as in one process: batch norm, and losses over pairs of samples, see the part of one
process (the statistics of the first one are kept); dropout draws by process; the loss on
``valid=True`` of a range test is that of a batch of the loader, not of all processes.
"""
