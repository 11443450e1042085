"""Measurements that the README quotes; each compares with the alternative in the same run."""
