"""`python -m distillkit`."""

import sys

from distillkit.front import main

if __name__ == "__main__":
    sys.exit(main())
