"""The folder of a run: writing it, reading it, its weights, pictures and words."""
