"""As many trials for each row of a recipe, and the settings that won."""
