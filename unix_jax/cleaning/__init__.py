"""Cleaning of radiology reports: by rules alone, or rewritten and judged by a language model."""
