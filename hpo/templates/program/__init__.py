"""Another program as a recipe."""
