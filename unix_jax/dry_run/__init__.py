"""Ahead-of-time compilation of a training step, analysis of its HLO, and bounds of its time."""
