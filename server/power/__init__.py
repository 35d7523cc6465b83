"""How loud every device speaks, and with how much noise of its own."""
