//! What the builder makes, checked against the loader.
