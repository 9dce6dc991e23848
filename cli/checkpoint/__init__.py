"""`farandole checkpoint`: show a checkpoint, and convert it from and to other formats."""
