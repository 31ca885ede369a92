"""What methods are built of: alignment, vocabularies, maps, warping, merging, divergences."""
