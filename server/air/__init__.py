"""The server's end of the radio: what carries a round, and what is simulated behind it."""
