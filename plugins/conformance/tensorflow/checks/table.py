"""The table of the checks that need Keras's models or TensorFlow's datasets."""

from ...checks import Checks

TENSORFLOW = Checks()
