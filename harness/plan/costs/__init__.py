"""What a plan's stages would cost."""
