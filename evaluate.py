"""`python evaluate.py …` is `simcse evaluate …`; see `python evaluate.py --help`."""

import sys

if __name__ == "__main__":
    from simcse_launcher import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))
