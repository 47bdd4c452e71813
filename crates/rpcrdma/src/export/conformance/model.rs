//! Any sequence of operations has the same outcome in memory and on a disk.
