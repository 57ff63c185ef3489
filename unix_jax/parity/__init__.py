"""Recomputes and compares golden files."""
