"""From audio to features, from features to encodings and back."""
