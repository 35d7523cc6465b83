"""Formula beside simulation: known numbers over the software air, error held against prediction.

Model of one trial, K devices, full scale 1, unit mean power gain:

    gains h from the channel model; pilots at full scale; silent if abs(h_hat) < min_gain
    s_kq ~ U[-1, 1], Q numbers, everybody as loud as the weakest who speaks
    truth = sums of s_k over those who speak, estimate = what the receiver makes of them

The prediction for a trial of the coherent waveform is the covariance N0 / (2 L c^2) I +
`csi_covariance` of its Q errors, with eigenvalues var_i: the numbers of a trial share its gain
errors. For the energy waveform it is, for each number, `energy_error_model.sum_variance` with the
true carriers, and what the errors of the power gains make of the terms, those that come from the
silence of a calibration together; that the numbers of a trial share gain errors is left out, so one
number a trial is what the limit is exact for.

Over all trials the variances give an NMSE and, as errors are nearly Gaussian, the standard
deviation sqrt(2 sum var_i^2) of the simulated squared error. How far the two may be apart follows
from Laurent and Massart (2000, Ann. Statist. 28(5), lemma 1): with a = [var_i] and x = ln(2/alpha),
the squared error exceeds its mean by more than 2 norm(a) sqrt(x) + 2 max(a) x, or falls short by
more than 2 norm(a) sqrt(x), with probability at most alpha in all.

Left out of the prediction: rounding to complex64, which shows above an SNR of about 120 dB; terms
of second order in the gain error, which show below about -10 dB; every impairment but carriers and
path loss.
"""

from radio.measurement.bench import Setting
from radio.measurement.coherent import measure_coherent
from radio.measurement.energy import measure_energy
from radio.measurement.over_the_air import Survey, measure_over_the_air, survey
from radio.measurement.result import Measurement
from radio.measurement.slotted import measure_slotted

__all__ = [
    "Measurement",
    "Setting",
    "Survey",
    "measure_coherent",
    "measure_energy",
    "measure_over_the_air",
    "measure_slotted",
    "survey",
]
