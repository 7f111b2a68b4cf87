"""The checks of all modules in one job, since starting its processes takes most of the time."""

import decision_checks
import equal_checks
import loop_checks
import resume_checks
import sharded_checks
import tool_checks
import unusual_checks
from together import run

MODULES = (
    equal_checks,
    loop_checks,
    tool_checks,
    decision_checks,
    resume_checks,
    sharded_checks,
    unusual_checks,
)
CHECKS = {
    f"{module.__name__}.{name}": check
    for module in MODULES
    for name, check in module.CHECKS.items()
}

if __name__ == "__main__":
    run(CHECKS)
