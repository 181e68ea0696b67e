"""Images as arrays, for every wing: resize, augmentation, drawing, labelled frames."""
