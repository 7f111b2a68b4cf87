"""Kill a training at random moments, resume it each time, and compare the bits that it ends in.

Each life of the training is a process with a group of its own, so that SIGKILL also takes the
workers of its loaders, wherever it is: in a batch, in validation, in the middle of writing a
checkpoint. The next life resumes from the folder. When the fit has come to its end, its weights,
optimizer, record and random states are compared with those of a fit that nobody disturbed. The
negative controls leave out one part of the state when they resume: their bits must differ.

    python tests/benchmarks/faults.py --kills 50
    python tests/benchmarks/faults.py --settings 3
    python tests/benchmarks/faults.py --sigterm 30
    python tests/benchmarks/faults.py --hand-made

The second line goes through all of `fault_settings.py`, each killed after batches that are drawn.
The last one writes files by hand, with valid checksums over what no training could have left, and
files as a disk damages them, and loads each in a process of its own. None may load, crash the
interpreter, change the learner, or let memory grow by more than twice the file and 64 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # a second, that otherwise every life would spend on its first optimizer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

import hand_made
from fault_settings import SETTINGS, Setting
from learner_state import trained

from onecycle import (
    Callback,
    Checkpoint,
    GradientAccumulation,
    GradientClip,
    Learner,
    MixedPrecision,
    accuracy,
)
from onecycle.callbacks.signals import EXIT_CODE
from onecycle.checkpoints import fit_files, snapshot

EPOCHS, BATCHES, BATCH = 4, 40, 16


def tensors() -> TensorDataset:
    """Make the data: a line divides two classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCHES * BATCH - 5, 32, generator=generator)
    return TensorDataset(x, (x.sum(1) > 0).long())


def learner(workers: int = 0, **options: Any) -> Learner:
    """Make a learner whose model has batch norm and dropout."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 2)
    )
    ds = tensors()
    train = DataLoader(ds, BATCH, shuffle=True, num_workers=workers)
    loss, valid = nn.functional.cross_entropy, DataLoader(ds, 128)
    return Learner((train, valid), model, loss, metrics=[accuracy], device="cpu", seed=3, **options)


def sgd_workers() -> Learner:
    """SGD with momentum, and two processes that load."""
    return learner(2, opt_func=lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9))


def adamw_accumulation_clip() -> Learner:
    """AdamW with three batches an update, the last of an epoch with one, and clipping."""
    return learner(wd=0.1, cbs=[GradientAccumulation(3), GradientClip(0.5)])


def adamw_bf16() -> Learner:
    """AdamW in mixed precision."""
    return learner(cbs=[MixedPrecision("bf16")])


SCENARIOS = {
    "SGD, BatchNorm, Dropout, 2 workers": sgd_workers,
    "AdamW, accumulation, clipping": adamw_accumulation_clip,
    "AdamW, bf16 mixed precision": adamw_bf16,
}


def without_rng() -> None:
    """Leave the random states alone."""
    snapshot.RngState.restore = lambda self: None  # type: ignore[method-assign]


def without_optimizer() -> None:
    """Leave the optimizer's state alone."""
    fit_files.load_opt_state = lambda learn, state: None


def without_position() -> None:
    """Begin the pass again."""
    restore = fit_files.restore

    def spoiled(learn: Any, state: dict[str, Any]) -> None:
        restore(learn, state)
        learn.iter = 0

    fit_files.restore = spoiled


CONTROLS = {
    "random states": without_rng,
    "optimizer": without_optimizer,
    "position": without_position,
}


def live(make: Callable[[], Learner], folder: Path, spoil: Callable[[], None] | None) -> None:
    """Live one life of the training; if it comes to its end, write the bits down."""
    torch.set_num_threads(1)
    learn = make()
    begun = bool(fit_files.find(folder))
    seed = os.getpid() if begun else 7  # what is not restored differs from life to life
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    if begun and spoil is not None:
        spoil()
    with learn.no_bar():
        learn.fit_one_cycle(EPOCHS, 0.1, cbs=[Checkpoint(folder, "3 updates")], resume=folder)
    counters = {name: getattr(learn, name) for name in ("n_updates", "total_epochs", "n_skipped")}
    state = {**trained(learn), **counters}
    bits = {name: hashlib.sha256(pickle.dumps(part)).hexdigest() for name, part in state.items()}
    (folder / "bits.tmp").write_text(json.dumps(bits))
    (folder / "bits.tmp").rename(folder / "bits.json")


def start(make: Callable[[], Learner], folder: Path, spoil: Callable[[], None] | None) -> int:
    """Start a life in a process group of its own, and return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            live(make, folder, spoil)
        code = 0
    finally:
        os._exit(code)


def finish(pid: int) -> None:
    """Let a life come to its end."""
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise RuntimeError(f"a life of the training ended with status {status}")


def kill(pid: int, seconds: float) -> bool:
    """Kill a life and its workers after so many seconds; tell whether it was still running."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            if status != 0:
                raise RuntimeError(f"a life of the training ended with status {status}")
            return False
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


class Trial:
    """One fit, killed at random moments until it has come to its end or was killed enough."""

    def __init__(
        self, make: Callable[[], Learner], spoil: Callable[[], None] | None = None
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="faults-"))
        self.make, self.spoil = make, spoil
        self.kills = self.torn = 0

    def run(self, rng: random.Random, longest: float, kills: int, *, begun: bool = False) -> dict:
        """Run to the end; return the bits.

        Args:
            rng: Draws the moments.
            longest: The longest life that is killed, in seconds.
            kills: After so many kills the training is left in peace.
            begun: Count only kills after the first checkpoint.
        """
        while self.kills < kills:
            killed = kill(start(self.make, self.folder, self.spoil), rng.uniform(0.02, longest))
            if not killed:
                break
            self.torn += any(self.folder.glob(".checkpoint-*.tmp"))
            self.kills += bool(fit_files.find(self.folder)) or not begun
        else:
            finish(start(self.make, self.folder, self.spoil))
        bits: dict[str, str] = json.loads((self.folder / "bits.json").read_text())
        shutil.rmtree(self.folder)
        return bits


def disturb(make: Callable[[], Learner], kills: int, rng: random.Random) -> tuple[dict, float]:
    """Kill fits until there were enough kills; return a row of the table, and a fit's seconds."""
    began = time.monotonic()
    expected = Trial(make).run(rng, 0.0, 0)
    seconds = time.monotonic() - began
    row = {"fits": 0, "kills": 0, "while writing": 0, "same bits": 0, "expected": expected}
    while row["kills"] < kills:
        trial = Trial(make)
        bits = trial.run(rng, 0.5 * seconds, kills - row["kills"])
        row["fits"] += 1
        row["kills"] += trial.kills
        row["while writing"] += trial.torn
        row["same bits"] += bits == expected
        differing = [name for name in expected if bits.get(name) != expected[name]]
        if differing:
            print(f"  after {trial.kills} kills these differ: {', '.join(differing[:8])}")
    return row, seconds


def load_by_hand(kind: str, path: Path) -> tuple[str, float]:
    """Load a file in a process of its own; return what is wrong, and the megabytes it took."""
    come, go = os.pipe()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            wrong = hand_made.outcome(kind, path)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            os.write(go, json.dumps([wrong, grown]).encode())
        os._exit(0)
    os.close(go)
    with open(come, "rb") as told:
        said = told.read()
    _, status = os.waitpid(pid, 0)
    if status or not said:
        return f"ended the process with status {status}", 0.0
    wrong, grown = json.loads(said)
    return wrong, grown


def files_to_refuse(kind: str, state: dict, rng: random.Random) -> dict[str, dict[str, bytes]]:
    """Return the contents of files by name: written by hand, bombs, and damaged ones."""

    def sealed(archives: dict[str, bytes]) -> dict[str, bytes]:
        return {name: hand_made.sealed(kind, archive) for name, archive in archives.items()}

    by_hand = {
        name: hand_made.archive(hand_made.edited(state, edit))
        for name, edit in hand_made.edits(kind).items()
    }
    whole = hand_made.sealed(kind, hand_made.archive(state))
    return {
        kind: sealed(by_hand),
        f"{kind}, bombs": sealed(hand_made.bombs(state)),
        f"{kind}, damaged": hand_made.damaged(whole, rng),
    }


def try_hand_made(rng: random.Random) -> bool:
    """Load all files written by hand, and damaged ones; tell whether none broke a rule."""
    warnings.simplefilter("ignore")  # torch's, of sparse tensors
    logging.getLogger("onecycle").setLevel(logging.CRITICAL)
    print(f"{'files':24}{'number':>10}{'refused':>10}{'most MB beyond the file':>26}")
    good = True
    for kind in hand_made.KINDS:
        folder = Path(tempfile.mkdtemp(prefix="hand-made-"))
        state, path = hand_made.good(kind, folder), folder / "file"
        for title, files in files_to_refuse(kind, state, rng).items():
            refused, most = 0, 0.0
            for name, content in files.items():
                path.write_bytes(content)
                wrong, grown = load_by_hand(kind, path)
                size = path.stat().st_size / 2**20
                if not wrong and grown > 2 * size + 64:
                    wrong = f"took {grown:.0f} MB of memory, and has {size:.1f}"
                if wrong:
                    print(f"  {title}, {name}: {wrong}")
                refused, most = refused + (not wrong), max(most, grown - 2 * size)
            print(f"{title:24}{len(files):>10}{refused:>10}{most:>26.1f}", flush=True)
            good &= refused == len(files)
        shutil.rmtree(folder)
    return good


# Many settings, each killed after updates that are drawn -------------------------------------


def live_in(setting: Setting, folder: Path, kill_at: int | None) -> None:
    """Live one life of a setting; SIGKILL comes after so many updates of this life, or never."""
    torch.set_num_threads(1)
    said = (folder / "said").open("a")
    log = logging.getLogger("onecycle")
    log.addHandler(logging.StreamHandler(said))
    log.propagate = False
    begun = any(folder.glob("**/*.pt"))
    seed = os.getpid() if begun else 7
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    learn, fit = setting(folder)
    done = []

    def count(learn: Learner) -> None:
        done.append(0)
        if len(done) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints = folder / "checkpoints"
    cbs = [Checkpoint(checkpoints, "1 updates"), Callback(after_batch=count, during="train")]
    with learn.no_bar():
        fit(learn, cbs=cbs, resume=checkpoints)
    parts = trained(learn)
    bits = {n: hashlib.sha256(repr(part).encode()).hexdigest() for n, part in parts.items()}
    (folder / "bits.json").write_text(json.dumps({**bits, "batches": str(len(done))}))


def lives(setting: Setting, folder: Path, kill_at: int | None) -> bool:
    """Run a life in a process of its own; tell whether it was killed."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                live_in(setting, folder, kill_at)
            code = 0
        except BaseException:
            (folder / "error").write_text(traceback.format_exc())
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    if status:
        raise RuntimeError((folder / "error").read_text().strip().splitlines()[-1])
    return False


def kill_setting(setting: Setting, kills: int, rng: random.Random) -> tuple[str, int]:
    """Return how a setting ends that is killed so often: same bits, warned, or silently other."""
    root, n = Path(tempfile.mkdtemp(prefix="faults-")), 0
    try:
        for name in ("whole", "killed"):
            (root / name).mkdir()
        lives(setting, root / "whole", None)
        whole = json.loads((root / "whole" / "bits.json").read_text())
        batches = int(whole.pop("batches"))
        while n < kills and lives(setting, root / "killed", rng.randint(1, batches - 1)):
            n += 1
        if n == kills:
            lives(setting, root / "killed", None)
        bits = json.loads((root / "killed" / "bits.json").read_text())
        said = (root / "killed" / "said").read_text()
    except RuntimeError as error:
        return f"FAILS: {error}", n
    finally:
        shutil.rmtree(root)
    differing = [name for name in whole if bits.get(name) != whole[name]]
    warned = "a resumed fit may end in other bits" in said
    if differing and not warned:
        return f"SILENTLY OTHER: {', '.join(differing[:4])}", n
    return ("other, warned" if differing else "same bits" + ", warned" * warned), n


def settings(kills: int, rng: random.Random, only: str) -> bool:
    """Print the table of all settings; tell whether none is silently other."""
    outcomes, total = [], 0
    for name, setting in SETTINGS.items():
        if only in name:
            outcome, n = kill_setting(setting, kills, rng)
            outcomes.append(outcome)
            total += n
            print(f"{name:56}{n:>6}  {outcome}", flush=True)
    for kind in sorted({each.partition(":")[0] for each in outcomes}):
        print(f"{sum(each.partition(':')[0] == kind for each in outcomes):>6} {kind}")
    print(f"{len(outcomes)} settings, {total} kills")
    return all(each[0].islower() for each in outcomes)


def asked_to_end(signals: int, rng: random.Random) -> bool:
    """Send SIGTERM to fits at moments that are drawn; tell whether each can be resumed exactly."""
    script = str(Path(__file__).resolve().parents[1] / "helpers" / "signalled_life.py")

    def life(folder: Path, seconds: float | None) -> tuple[int, str, str]:
        command = [sys.executable, script, str(folder), "" if seconds is None else str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout.strip(), done.stderr

    root = Path(tempfile.mkdtemp(prefix="faults-"))
    *expected, said = life(root / "whole", None)
    longest = 0.8 * float(said.split()[-1])  # of the fit: some begin late, or are faster
    codes = resumable = same = 0
    for i in range(signals):
        code, *_ = life(root / str(i), rng.uniform(0.0, longest))
        codes += code == EXIT_CODE
        resumable += bool(fit_files.find(root / str(i)))
        same += [*life(root / str(i), None)[:2]] == expected
    shutil.rmtree(root)
    print(f"SIGTERM {signals}, exit code {EXIT_CODE} {codes}, resumable {resumable}, same {same}")
    return codes == resumable == same == signals


def main() -> int:
    """Run everything and print the tables; the exit status is 1 where a rule is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="kills in each scenario")
    parser.add_argument("--controls", type=int, default=3, help="fits for each negative control")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--hand-made", action="store_true", help="files written by hand instead")
    parser.add_argument("--settings", type=int, default=0, help="kills in each of all settings")
    parser.add_argument("--sigterm", type=int, default=0, help="fits that are asked to end")
    parser.add_argument("--only", default="", help="only settings whose name holds this text")
    args = parser.parse_args()
    if args.hand_made:
        return not try_hand_made(random.Random(args.seed))
    torch.set_num_threads(1)
    rng, good = random.Random(args.seed), True
    if args.sigterm:
        return not asked_to_end(args.sigterm, rng)
    if args.settings:
        return not settings(args.settings, rng, args.only)
    heads = ("fits", "kills", "while writing", "same bits")
    print(f"{'scenario':36}" + "".join(f"{head:>15}" for head in heads))
    controls = []
    for name, make in SCENARIOS.items():
        row, seconds = disturb(make, args.kills, rng)
        print(f"{name:36}" + "".join(f"{row[head]:>15}" for head in heads), flush=True)
        good &= row["same bits"] == row["fits"]
        for part, spoil in CONTROLS.items():
            trials = [Trial(make, spoil) for _ in range(args.controls)]
            ends = [trial.run(rng, 0.5 * seconds, 1, begun=True) for trial in trials]
            killed = [bits for trial, bits in zip(trials, ends, strict=True) if trial.kills]
            differ = sum(bits != row["expected"] for bits in killed)
            controls.append((f"{name}: {part}", len(killed), differ))
            good &= differ == len(killed)
    print(f"\n{'not restored (negative control)':60}{'killed fits':>15}{'differ':>10}")
    for name, n, differ in controls:
        print(f"{name:60}{n:>15}{differ:>10}")
    return not good


if __name__ == "__main__":
    sys.exit(main())
