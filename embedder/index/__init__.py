"""The living index: collections of vectors and payload, searched, written to, folded, and swapped as versions."""
