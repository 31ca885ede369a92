"""What methods learn where the truth is known, and whether one that is broken would be noticed."""
