"""Several processes: sharing the work, and training one model in all of them.

``torchrun --nproc-per-node 4 train.py`` starts a script four times. The learner that it makes finds
the others, and a fit is that of one process whose batch is as large as those of all together:

- Each takes its part of every batch, by position: nothing comes twice, is padded or left out. The
  loader's batch size is that of one process. See `onecycle.parallel.shards`, and for data sets
  that draw their share alone `onecycle.parallel.share`.
- Where they would make different fits, each from other data or with another rate, all end before
  the first update, as far as that can be seen: `onecycle.parallel.alike`.
- torch's DistributedDataParallel takes the gradients together; losses count by their samples, or by
  what `Learner.loss_weight` says. See `onecycle.parallel.wrapped`.
- The recorded loss, the validation loss and the metrics are those over all samples, the same number
  in every process; so what is decided by them is decided alike. What a callback of the user's
  cancels in one process is cancelled in all, at the same event: see `onecycle.parallel.agreed`.
- The first process prints, draws, logs and writes. Inference (``validate``, ``get_preds``,
  ``predict``) asks no other process with ``"ddp"``: each predicts the whole loader for itself.
- A checkpoint goes on with the same number of processes in the same bits, and with another number,
  or one, with the same samples in the same order; it keeps the batch of all.
- Where one process fails, the others end with its error.

With ``parallel="fsdp"`` each process has a part of every parameter, of its gradient and of its
optimizer's state, by torch's ``fully_shard`` (`onecycle.parallel.sharded`), for a model that is too
large for one device. What is said above holds, and:

- The blocks are the children with most parameters, or the layers in containers of layers; what is
  left, and what shares a weight, goes with the whole (`onecycle.parallel.blocks`).
- Every process must make each call that runs the model or writes it, `Learner.save` too: the
  others wait for it. Each uses the same modules in the same order for a batch, or all end with an
  error; that is asked for each batch, on the CPU.
- A file of `Learner.save` and a checkpoint are the plain ones: the first process gathers the
  whole state, tensor by tensor, on the CPU, so that one process, any number, and ``"ddp"`` go on
  with it. A folder of parts would be written sooner, but not be whole or absent, nor be proven
  and told from that of another run, by the rules that hold for the one file. The first process
  needs the memory for the whole while it writes, and each while it reads.
- Accumulated gradients are added up with every batch: no process keeps those of the whole model.
- Optimizers are torch's that look at each number for itself, given by ``opt_func=``; fused kernels
  and the fast step are not used. `MixedPrecision` in bf16 is torch's own policy, and belongs to the
  `Learner`. What needs whole parameters is refused before the first update: ``compile=``,
  `CudaGraph`, `MicroBatches`, `ChannelsLast`, `SnapshotEnsemble`, ``export``, ``summary``, copies.
- After an error in a fit the parts of a model cannot be joined again: the `Learner` is made anew,
  and ``resume=`` goes on.

Not the same as in one process: batch norm, and losses over pairs of samples, see the part of one
process (the statistics of the first one are kept); dropout draws by process; the loss on
``valid=True`` of a range test is that of a batch of the loader, not of all processes.
``nn.SyncBatchNorm.convert_sync_batchnorm(model)`` is accepted as it is, and lets batch norm see the
batch of all, on GPUs alone: on a CPU torch refuses it. Where the last batch of an epoch has no
sample for a process, its statistics count the one that this process repeats.
"""
