"""The last part of the book: a network fitted to one observation, by inertia."""
