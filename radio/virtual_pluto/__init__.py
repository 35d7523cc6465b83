"""Virtual Plutos: real clients connect to them, and no radio is there.

The unmodified libiio and pyadi-iio find a context, a transceiver, a DAC and an ADC at a TCP port,
set them up, and exchange samples with them; several radios share one air::

    client --TCP-- iiod.Session -- pluto.VirtualPluto -- air.VirtualAir -- the others
                   (protocol)      (attributes, buffers)  (samples, time)

Does not model: USB, its bandwidth and its errors; a second channel; rates by the FPGA's filters;
the shape of analogue and digital filters, and their delay; the dependence of gain and leakage on
frequency, attenuation and temperature; the transient after a change of gain or frequency; fast lock
profiles; test signals (BIST); delays of the paths; multipath; other people's
signals. `firmware_notes/virtual-pluto.md` says what is modelled, and how.
"""
