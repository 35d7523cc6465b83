"""What the sub-commands of ``pairzero`` do, one story a function; `server.cli` parses for them."""
