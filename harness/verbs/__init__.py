"""Verbs of the command line: what they ask for, and those about what is kept."""
