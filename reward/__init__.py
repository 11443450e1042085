"""Text and ground truth in, a score out; each file stands alone."""
