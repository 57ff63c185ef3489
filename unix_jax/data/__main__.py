"""The command `python -m unix_jax.data`: the same as `unix-jax data`."""

import sys

from unix_jax.commands.data import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m unix_jax.data"))
