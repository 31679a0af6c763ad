//! A small HTTP server: answers `GET` and `HEAD`, one request a connection, and nobody can hold others up.
//!
//! Metrics and the dashboard share it; what they say is theirs.

mod message;
mod server;
mod tls;

pub use message::{Answer, Request};
pub use server::{Limits, Server, Site};
pub use tls::{TlsError, TlsFiles};
