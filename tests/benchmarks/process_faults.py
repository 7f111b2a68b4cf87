"""Kill trainings of several processes at random moments, resume them, and compare how they end.

Of a run one process, or all, are killed with SIGKILL at a moment that is drawn: in a batch, in a
reduction, while a checkpoint is written; all of them also before the fit has begun. The others must
end by themselves within `PATIENCE`, or it counts as a hang. Then as many processes are started
again, until the fit has come to its end: in every process weights, optimizer, record and random
states must have the bits of one that nobody disturbed.

Other runs are resumed by another number of processes each time, of 1, 2 and 4. Of these the samples
of each batch are written down by every process: whatever was trained, before and after a kill, must
be the batches of the undisturbed run, in its order, and the parameters the same to 1e-6 (float64).

    python tests/benchmarks/process_faults.py --kills 30 --others 10
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

import torch
from process_life import EPOCHS, WHOLE, live
from started import free_port
from together import UPDATES

#: Seconds after which processes that go on without a killed one are taken to hang.
PATIENCE = 30.0
#: The longest time in a fit after which it is killed, in seconds.
LONGEST = 1.0
#: Updates of a fit.
N_UPDATES = EPOCHS * UPDATES
#: Of so many kills one comes before the fit has begun, or while it does.
EARLY = 6


class Forked:
    """The processes of one life, forked from this one, which has imported what takes long.

    Args:
        world: How many.
        folder: Where they write.
        words: What `live` is called with besides.
    """

    def __init__(self, world: int, folder: Path, *words: str) -> None:
        self.codes: list[int | None] = [None] * world
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.pids = [self._fork(rank, world, folder, words, where) for rank in range(world)]

    def _fork(
        self, rank: int, world: int, folder: Path, words: tuple[str, ...], where: dict[str, str]
    ) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ.update(where | own)
            said = (folder / f"said-{rank}").open("w")
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
            live(str(folder), *words)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def poll(self, rank: int) -> int | None:
        """Return the exit code of a process; ``None`` while it runs."""
        if self.codes[rank] is None:
            pid, status = os.waitpid(self.pids[rank], os.WNOHANG)
            self.codes[rank] = os.waitstatus_to_exitcode(status) if pid else None
        return self.codes[rank]

    def runs(self) -> bool:
        """Tell whether one of them runs."""
        return None in [self.poll(rank) for rank in range(len(self.pids))]

    def kill(self, rank: int) -> None:
        """Kill a process, if it runs."""
        if self.poll(rank) is None:
            os.kill(self.pids[rank], signal.SIGKILL)

    def wait(self, limit: float) -> bool:
        """Wait for all to end; kill those that do not, and tell whether there were any."""
        until = time.monotonic() + limit
        while self.runs() and time.monotonic() < until:
            time.sleep(0.005)
        hung = self.runs()
        for rank in range(len(self.pids)):
            self.kill(rank)
        while self.runs():
            time.sleep(0.005)
        return hung


class Run:
    """One training in a folder of its own, life after life.

    Args:
        kind: ``"bits"`` or ``"numbers"``.
        world: How many processes begin it.
        folder: Where it writes; by default a new one.

    Attributes:
        kills: How often it was killed.
        hangs: How often others did not end by themselves.
    """

    def __init__(self, kind: str, world: int, folder: Path | None = None) -> None:
        self.kind, self.batch_size = kind, WHOLE // world
        self.folder = folder or Path(tempfile.mkdtemp(prefix="process-faults-"))
        self.kills = self.hangs = self.lives = 0

    def live(self, world: int, rng: random.Random | None = None, longest: float = 0.0) -> bool:
        """Live one life, and kill it where a moment is to be drawn; tell whether it has ended.

        Args:
            world: How many processes.
            rng: Draws the moment, and who is killed.
            longest: The longest time in the fit after which it is killed, in seconds.
        """
        life, self.lives = self.lives, self.lives + 1
        job = Forked(world, self.folder, str(life), self.kind, str(self.batch_size))
        if rng is not None and self._is_cut(job, life, world, rng, longest):
            self.kills += 1
            return False
        self.hangs += job.wait(300.0)
        if any(job.codes):
            said = (self.folder / "said-0").read_text()[-2000:]
            raise RuntimeError(f"processes ended with {job.codes}:\n{said}")
        return True

    def _is_cut(
        self, job: Forked, life: int, world: int, rng: random.Random, longest: float
    ) -> bool:
        """Kill some; tell whether the fit had not come to its end before."""
        is_early, is_all, moment = rng.randrange(EARLY) == 0, rng.randrange(3) == 0, rng.random()
        # Before they have found each other torch waits for one that was killed, for its launcher.
        who = [*range(world)] if is_early or is_all else [rng.randrange(world)]
        seen = self.folder / f"seen-{life}-{world}-{world - 1}"
        while not (is_early or (seen.exists() and seen.stat().st_size)) and job.runs():
            time.sleep(0.002)
        until = time.monotonic() + moment * longest
        while time.monotonic() < until and job.runs():
            time.sleep(0.001)
        for rank in who:
            job.kill(rank)
        self.hangs += job.wait(PATIENCE)
        return any(job.codes)

    def ends(self) -> list[dict[str, object]]:
        """Return by process how it ended."""
        return [json.loads(each.read_text()) for each in sorted(self.folder.glob("end-*.json"))]

    def batches(self) -> dict[int, list[list[int]]]:
        """Return by update the samples of all processes, of each life that trained it."""
        found: dict[int, list[list[int]]] = {}
        for first in self.folder.glob("seen-*-0"):
            _, life, world, _ = first.name.split("-")
            files = [self.folder / f"seen-{life}-{world}-{rank}" for rank in range(int(world))]
            own = [_lines(file) for file in files]
            for update in set.intersection(*(set(each) for each in own)):
                samples = [i for each in own for i in each[update]]
                found.setdefault(update, []).append(samples)
        return found

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)


def _lines(file: Path) -> dict[int, list[int]]:
    if not file.exists():
        return {}
    whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return dict(map(json.loads, whole))


def undisturbed(kind: str, world: int) -> Run:
    """Return a run that nobody disturbed."""
    run = Run(kind, world)
    run.live(world)
    return run


def same_number(right: Run, world: int, kills: int, rng: random.Random) -> list[str]:
    """Kill runs of so many processes so often; return where they differ from the right one."""
    wrong, n = list[str](), 0
    while n < kills:
        run = Run("bits", world)
        while run.kills < 5 and n < kills and not run.live(world, rng, LONGEST):
            n += 1
        if len(run.ends()) < world:
            run.live(world)
        if [each["bits"] for each in run.ends()] != [each["bits"] for each in right.ends()]:
            wrong.append(f"{world} processes, {run.kills} kills: other bits")
        wrong += [f"{world} processes: they hung"] * run.hangs
        run.remove()
    return wrong


def other_number(kills: int, rng: random.Random) -> list[str]:
    """Kill runs so often, and go on with another number of processes; return what is wrong.

    What is right is what one process does that nobody disturbed.
    """
    right, wrong, n = undisturbed("numbers", 1), list[str](), 0
    expected = {update: each[0] for update, each in right.batches().items()}
    while n < kills:
        run, world = Run("numbers", 2), 2
        has_ended = False
        while run.kills < 4 and n < kills and not has_ended:
            has_ended = run.live(world, rng, LONGEST)
            n += not has_ended
            world = rng.choice([each for each in (1, 2, 4) if each != world])
        if not has_ended:
            run.live(world)
        wrong += _differences(run, right, expected)
        run.remove()
    right.remove()
    return wrong


def _differences(run: Run, right: Run, expected: dict[int, list[int]]) -> list[str]:
    found, wrong = run.batches(), [f"{run.lives} lives: they hung"] * run.hangs
    if sorted(found) != list(range(1, N_UPDATES + 1)):
        wrong.append(f"{run.lives} lives: {len(found)} of {N_UPDATES} updates were seen")
    others = [u for u, each in found.items() if any(samples != expected[u] for samples in each)]
    if others:
        wrong.append(f"{run.lives} lives: update {min(others)} has other samples, or another order")
    mine, theirs = (each.ends()[0]["parameters"] for each in (run, right))
    distance = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))  # type: ignore[call-overload]
    if not distance < 1e-6:
        wrong.append(f"{run.lives} lives: parameters differ by {distance:.3g}")
    return wrong


def main() -> int:
    """Print the table; the exit status is 1 where a rule is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="with the same number, 2 and 4")
    parser.add_argument("--others", type=int, default=10, help="with another number")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng, broken = random.Random(args.seed), False
    half = args.kills // 2
    for title, n, world in (
        ("2 processes, as many again", args.kills - half, 2),
        ("4 processes, as many again", half, 4),
        ("1, 2 or 4, another number each time", args.others, None),
    ):
        began = time.monotonic()
        if world is None:
            wrong = other_number(n, rng)
        else:
            right = undisturbed("bits", world)
            wrong = same_number(right, world, n, rng)
            right.remove()
        broken |= bool(wrong)
        print(f"{title:40}{n:>5} kills, {len(wrong)} wrong, {time.monotonic() - began:.0f} s")
        for each in wrong:
            print(f"  {each}", flush=True)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
