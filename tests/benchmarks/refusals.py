"""Count what becomes of nonsense: every kind of it for every parameter of every public name.

    PYTHONPATH=. python tests/benchmarks/refusals.py

Prints how many calls there were with each outcome, and each one that is not clear: an error is
clear if it is a TypeError, a ValueError or one of onecycle's that names argument and value, within
a second, with nothing written to disk. Takes about a minute.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import matplotlib as mpl

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

from nonsense import VALUES, calls, outcome


def main() -> int:
    mpl.use("Agg")
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    every = calls()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        found = [outcome(who, name, label, VALUES[label]()) for who, name, label in every]
        os.chdir("/")
    unclear = [each for each in found if each.verdict != "ok"]
    places = {(each.subject, each.parameter) for each in found}
    print(f"{len(found)} calls: {len(VALUES)} values for {len(places)} parameters")
    refused = sum(bool(each.said) for each in found)
    print(f"{refused} refused, {len(found) - refused - len(unclear)} valid, {len(unclear)} unclear")
    for verdict, n in Counter(each.verdict for each in unclear).most_common():
        print(f"{n:>6}  {verdict}")
    for each in unclear:
        print(each)
    return int(bool(unclear))


if __name__ == "__main__":
    sys.exit(main())
