//! What a worker links.
