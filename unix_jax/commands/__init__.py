"""Commands of `unix-jax`, one module each, cheap to import."""
