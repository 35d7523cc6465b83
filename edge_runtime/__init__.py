"""What runs on an edge computer: forward passes, directions, clipping, a few numbers a round."""
