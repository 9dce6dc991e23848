"""One module per engine, on the shared base of TensorFlow's strategies."""
