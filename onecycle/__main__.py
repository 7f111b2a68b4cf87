"""Run the command line as ``python -m onecycle``."""

import sys

from onecycle.cli import main

if __name__ == "__main__":
    sys.exit(main())
