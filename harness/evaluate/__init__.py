"""Evaluation: generation, and the scores that read what was generated."""
