"""`python train.py …` is `simcse train …`; see `python train.py --help`."""

import sys

if __name__ == "__main__":
    from simcse_launcher import main

    sys.exit(main(["train", *sys.argv[1:]]))
