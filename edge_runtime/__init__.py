"""What runs on an edge computer: forward passes, directions, clipping, one scalar per round."""
