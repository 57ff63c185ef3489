"""Paths, atomic writes, append-only files, and the lock on a directory."""
