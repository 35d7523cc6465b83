"""What the sub-commands of ``pairzero`` do, one story a function; `cli` parses for them."""
