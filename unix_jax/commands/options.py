"""Checks of options that several commands share."""

from unix_jax.errors import UniXError


def require_least(command: object, **least: float) -> None:
    """Raises UniXError for a number below its least value; None is no number.

    `least` is by the name of the command's field, which is that of the option with underscores.
    """
    for name, smallest in least.items():
        value = getattr(command, name)
        # Not-a-number is below everything.
        if value is not None and not value >= smallest:
            option = f"--{name.replace('_', '-')}"
            raise UniXError(f"{option}: expected at least {smallest}, found {value}")
