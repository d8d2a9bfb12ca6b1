"""Parts of the train job."""
