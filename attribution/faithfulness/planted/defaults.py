"""Default sizes of the planted measurement. Nothing is imported here, so that the command's --help starts quickly."""

STEPS = 1500  # of each training
SUBSETS = 48  # half-corpora
