"""Part I of the book: problems, mixtures, posteriors, estimators. Exact; no network."""
