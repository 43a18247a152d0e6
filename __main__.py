"""`python -m samkd VERB ...` is the command line."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # python -m puts the working folder first: a numpy.py among somebody's scans would be imported in numpy's place.
    if not sys.flags.safe_path and Path(sys.path[0]) != Path(__file__).parents[1]:
        del sys.path[0]
    from .cli.app import main

    main()
