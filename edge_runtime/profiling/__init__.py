"""What a step takes on this machine: memory, time and energy, phase by phase."""
