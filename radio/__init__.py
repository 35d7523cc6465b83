"""Samples, gains and frames: from one number per device to the sum of them, through the air.

Knows nothing of rounds, gradients or privacy. Needs numpy alone. Amplitude 1.0 is full scale of
the transmit converter; powers are per complex sample, E[abs(x)^2]; positions are in samples.

==================  ==============================================================
units, metrics      decibel and linear; NMSE, SNR, EVM
errors, checks      what can go wrong, and where it is stopped
transceiver         the interface of every radio; ``backends`` names them
channel_models      gains of one coherence block
medium, loopback    the software air and a transceiver on it
waveforms           from a scalar to samples and back
measurement, cli    formula beside simulation; ``pairzero-radio doctor | measure``
==================  ==============================================================
"""

import os

# Read when numpy is loaded; whoever has set it keeps it. Matrices are small here, and a BLAS with a
# thread for each processor lets the others spin behind every product: on two processors a round of
# five devices took 1.08 times as long (benchmarks/hosted_devices.py). Nor do sums then depend on
# how many processors there are.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
