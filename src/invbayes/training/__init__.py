"""Part III of the book: objectives, samples, the training loop, a report without an oracle."""
