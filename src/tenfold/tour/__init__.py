"""`tenfold tour`: every system on real input, one HTML page."""
