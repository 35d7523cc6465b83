"""From a scalar to samples and back: ``modulate`` at the device, ``demodulate`` at the receiver.

``coherent`` adds amplitudes: the devices undo their channels, signals arrive in phase, and the
receiver reads the signed sum. ``error_model`` predicts how far off it is, ``zadoff_chu`` makes the
sequences.
"""
