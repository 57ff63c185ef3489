"""Commands of `unix-jax`, one module each, light to import."""
