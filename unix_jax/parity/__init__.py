"""Golden files recomputed and compared."""
