//! Which cluster a program works on, and where the gateway of this host listens: options that daemon and command share.

use crate::settings::{self, Settings};
use crate::{Error, Result, control};
use client::Cluster;
use std::path::PathBuf;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Options {
    /// Name of the cluster.
    #[arg(short = 'c', long = "cluster", env = "PSTORAGE_NAME", value_parser = wire::parse_cluster_name)]
    cluster: String,
    /// Directory of the configuration.
    #[arg(long, env = "PSTORAGE_ETC", default_value = "/etc/pstorage")]
    etc: PathBuf,
    /// Socket between pstorage-iscsi and the gateway of this host. [default: /run/pstorage-iscsi-CLUSTER.sock]
    #[arg(long, env = "PSTORAGE_ISCSI_SOCKET")]
    socket: Option<PathBuf>,
}

impl Options {
    pub fn settings(&self) -> Result<Settings> {
        settings::load(&self.etc)
    }

    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| control::default_socket(&self.cluster))
    }

    /// `program`: what the cluster's list of clients says of this one. A file that another has is waited for up to `busy_wait`.
    pub fn connect(&self, program: &str, busy_wait: Duration) -> Result<Cluster> {
        let mut config = client::setup::load(&self.etc, &self.cluster).map_err(Error::Refused)?;
        config.mount_point = program.into();
        config.busy_wait = busy_wait;
        Cluster::connect(config).map_err(Error::cluster(&self.name()))
    }

    pub fn close(&self, cluster: Cluster) -> Result {
        cluster.close().map_err(Error::cluster(&self.name()))
    }

    fn name(&self) -> String {
        format!("cluster '{}'", self.cluster)
    }
}
