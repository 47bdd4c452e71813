//! What a server serves.
