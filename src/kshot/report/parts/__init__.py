"""The parts of a run that a report shows: each file holds what a part is and how it is read."""
