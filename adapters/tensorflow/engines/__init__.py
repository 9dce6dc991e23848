"""One engine a module, on the shared base of TensorFlow's strategies."""
