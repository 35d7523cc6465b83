"""Hosts of devices that are processes of their own, and the broker between them and the server."""
