"""The command `python -m convert`: the same as `unix-jax convert`."""

import sys

from unix_jax.commands.convert import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m convert"))
