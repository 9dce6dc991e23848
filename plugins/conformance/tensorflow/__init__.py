"""The suite's program, reference and checks for TensorFlow, in Keras 3."""
