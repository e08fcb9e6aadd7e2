"""What ranges the tensors take on real images, and the precision plan that follows."""
