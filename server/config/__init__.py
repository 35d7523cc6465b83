"""The configuration, one file a section, every value checked."""
