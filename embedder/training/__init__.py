"""From rewards to a trained encoder."""
