"""From a recipe to cells and stages with their identities."""
