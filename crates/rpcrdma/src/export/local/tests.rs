//! What only a directory of the machine can show.
