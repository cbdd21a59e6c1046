"""A tagger as an ONNX model: the graph, its parity with PyTorch, int8, a runner, Triton."""
