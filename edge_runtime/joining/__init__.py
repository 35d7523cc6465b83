"""How a host of devices takes part in a run over a network."""
