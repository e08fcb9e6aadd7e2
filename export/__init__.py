"""From a network to files: ONNX graphs, bundles, TensorRT engines. Needs the ``export`` extra (engines: ``tensorrt``)."""
