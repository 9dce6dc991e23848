"""`farandole horovod`: a Horovod that compiles against the PyTorch and TensorFlow that are installed."""
