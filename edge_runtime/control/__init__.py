"""How orders reach the devices and answers come back."""
