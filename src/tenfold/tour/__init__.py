"""`tenfold tour`: training and inference of every system on real input, as one HTML page."""
