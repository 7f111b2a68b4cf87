"""`PlannedLoop`: several processes are about to make one fit, or are told in what they differ."""

from __future__ import annotations

from onecycle.checkpoints.fit_plan import changes, plan_of, told
from onecycle.parallel.together import ParallelLoop
from onecycle.processes import Processes


class PlannedLoop(ParallelLoop):
    """A loop whose fits have a plan, by which a resumed one is known, and each process as well."""

    def check_same_plan(self, processes: Processes) -> None:
        """Refuse a fit of which rates, schedules or lengths differ between the processes.

        Args:
            processes: The processes: every one calls this.

        Raises:
            ValueError: In every process, with what differs.
        """
        # One process may have a callback of its own.
        said = processes.gather(plan_of(self) | {"preparing": []})
        for number, each in enumerate(said):
            if differing := changes(said[0], each):
                raise ValueError(
                    "the processes are about to make different fits: of process 0, and then of "
                    f"process {number}, {told(differing)}. Let all run the same lines, with the "
                    "same numbers: what is drawn at random needs a seed that all have"
                )
