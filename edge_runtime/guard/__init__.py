"""A device guards itself: what it may release, what it has released, its keys."""
