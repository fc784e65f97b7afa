"""Data sets of image pairs, their preprocessing, augmentation and loading."""
