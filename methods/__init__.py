"""The science: alignment, vocabulary maps, divergences and one file for each distillation method."""
