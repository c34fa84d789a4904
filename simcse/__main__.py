"""`python -m simcse …` is `simcse …`."""

import sys

from simcse_launcher import main

sys.exit(main())
