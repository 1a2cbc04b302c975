"""The stages of a recipe, one a file."""
