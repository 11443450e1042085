"""Hub or local files in, verl-shaped parquet and a manifest out."""
