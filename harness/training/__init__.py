"""Losses, the training loop, distillation, sampled responses."""
