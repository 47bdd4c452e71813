//! The server: transports that take Calls, and the service that executes them.

pub mod service;
pub mod tcp;
