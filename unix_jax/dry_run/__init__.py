"""A step compiled ahead of time, its HLO read, its time bounded."""
