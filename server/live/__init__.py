"""A run while it goes on: how it stands, on the disk, on a page, for a monitoring system."""
