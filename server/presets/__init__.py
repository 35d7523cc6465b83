"""Named, tested configurations."""
