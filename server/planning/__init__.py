"""From a configuration to levels, noise and terms; what a run will be like before it begins."""
