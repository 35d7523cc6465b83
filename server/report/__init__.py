"""What a run leaves for eyes: figures, plots, the page, the terminal."""
