//! Where a daemon serves its metrics, and whether others than this host may read them.

use crate::server::{Door, LIMITS};
use std::net::SocketAddr;
use web::Server;

/// Part of a daemon's command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::Args)]
pub struct Options {
    /// Serve metrics for Prometheus at http://IP:PORT/metrics, and whether the server works at /healthz.
    #[arg(long, value_name = "IP:PORT", env = "PSTORAGE_METRICS")]
    pub metrics: Option<SocketAddr>,
    /// The address of the metrics may be other than a loopback one: whoever reaches it reads them.
    #[arg(long, env = "PSTORAGE_METRICS_OPEN")]
    pub metrics_open: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error(
        "metrics at {addr} could be read by every machine that reaches this address, without a password: name one of \
         127.0.0.0/8, or allow it with --metrics-open (of a mount: -o metrics_open)"
    )]
    Open { addr: SocketAddr },
    #[error("can't serve metrics at {addr}: {error}; name a free port of an address of this host")]
    Listen { addr: SocketAddr, error: std::io::Error },
}

impl Options {
    pub fn check(&self) -> Result<(), MetricsError> {
        match self.metrics {
            Some(addr) if !addr.ip().is_loopback() && !self.metrics_open => Err(MetricsError::Open { addr }),
            _ => Ok(()),
        }
    }

    /// Takes the port; `None` where no metrics are asked for. Who comes is answered once the door is opened.
    pub fn listen(&self) -> Result<Option<Door>, MetricsError> {
        self.check()?;
        let Some(addr) = self.metrics else { return Ok(None) };
        let server = Server::bind(addr, LIMITS).map_err(|error| MetricsError::Listen { addr, error })?;
        Ok(Some(Door(server)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_from_outside_must_be_asked_for() {
        let at = |addr: &str, metrics_open| Options { metrics: Some(addr.parse().unwrap()), metrics_open };
        let refused = at("192.0.2.1:9000", false).listen().err().unwrap().to_string();
        assert!(refused.contains("192.0.2.1:9000") && refused.contains("--metrics-open"), "{refused}");
        assert!(at("0.0.0.0:9000", false).check().is_err());
        assert!(at("192.0.2.1:9000", true).check().is_ok());
        assert!(at("127.0.0.1:9000", false).check().is_ok() && at("[::1]:9000", false).check().is_ok());
        assert!(Options::default().listen().unwrap().is_none());
    }
}
