"""Model in; samples, grades, statistics and a report out."""
