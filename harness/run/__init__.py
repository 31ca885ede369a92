"""Walks a plan: loads, checks, trains, evaluates."""
