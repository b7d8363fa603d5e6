"""The data of a run: feature trees, buckets, the generated corpus, splits and batches."""
