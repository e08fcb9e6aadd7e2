"""From graphs to TensorRT engines."""
