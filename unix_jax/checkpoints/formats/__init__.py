"""Lazy readers that execute nothing, and streaming writers."""
