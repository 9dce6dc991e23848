"""TensorFlow engines."""
