"""The command `python -m unix_jax`: the same as `unix-jax`."""

import sys

from unix_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
