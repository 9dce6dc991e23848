"""`farandole checkpoint`: what is in a checkpoint, and the way from and to other formats."""
