"""Parts of the label job."""
