"""The commands of ``pairzero-radio``, one a file; each adds its parser and runs on it."""
