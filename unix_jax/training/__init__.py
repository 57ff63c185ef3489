"""Configurations of runs, and the parts that a training loop of one's own needs."""

import lazy_loader

# The public names are in __init__.pyi; each is imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
