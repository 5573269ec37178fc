"""Whether the calibration set matters: methods x sets x sizes x seeds."""
