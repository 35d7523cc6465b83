"""ADALM-PLUTOs: their driver, what they are set to, and how they fall silent whatever happens."""
