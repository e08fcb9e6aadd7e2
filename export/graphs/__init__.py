"""From a network and a precision plan to ONNX graphs."""
