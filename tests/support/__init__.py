"""What several test modules share: toy models, toy data, reference implementations."""
