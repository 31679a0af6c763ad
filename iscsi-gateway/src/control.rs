//! What the command says to the daemon of its host: a line of JSON each way, over a Unix socket that only root may use.

use crate::gateway::{Gateway, GatewayState};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Longest line.
const MAX_LINE_BYTES: u64 = 4 << 20;
/// How long a command waits: a target that starts waits for leases, one that stops for what is under way.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Request {
    Start {
        iqn: String,
    },
    Stop {
        iqn: String,
    },
    /// A target's record was changed.
    Refresh {
        iqn: String,
    },
    Grow {
        iqn: String,
        lun: u16,
        size_bytes: u64,
    },
    State,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Reply {
    Done,
    /// The target is not served here.
    NotHere,
    State(GatewayState),
    Failed {
        why: String,
    },
}

/// Where the daemon of a cluster listens, if nobody says another place.
pub fn default_socket(cluster: &str) -> PathBuf {
    format!("/run/pstorage-iscsi-{cluster}.sock").into()
}

/// Asks the daemon of this host.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply> {
    let mut stream = UnixStream::connect(socket).map_err(|error| {
        Error::Refused(format!(
            "no gateway runs on this host ({}: {}): start pstorage-iscsid, or name its --socket",
            socket.display(),
            shards::text::cause(&error)
        ))
    })?;
    let failed = |error: std::io::Error| Error::File { path: socket.display().to_string(), source: error };
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut line = serde_json::to_string(request).unwrap_or_default();
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_LINE_BYTES)).read_line(&mut answer).map_err(failed)?;
    match serde_json::from_str(&answer) {
        Ok(Reply::Failed { why }) => Error::refused(why),
        Ok(reply) => Ok(reply),
        Err(_) => Error::refused("the gateway gave no answer; its log says why"),
    }
}

/// A socket that goes with the daemon.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    pub fn bind(path: &Path) -> Result<Listener> {
        if UnixStream::connect(path).is_ok() {
            return Error::refused(format!("{}: a gateway runs already", path.display()));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file(path)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(Error::file(path))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(Error::file(path))?;
        Ok(Listener { listener, path: path.into() })
    }

    /// Answers commands, on a thread that ends with the process.
    pub fn serve(&self, gateway: &Arc<Gateway>) -> Result {
        let listener = self.listener.try_clone().map_err(Error::file(&self.path))?;
        let gateway = Arc::downgrade(gateway);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), Some(gateway)) = (stream, gateway.upgrade()) else { continue };
                // Each on its own thread: one that starts a target may wait.
                std::thread::spawn(move || converse(&gateway, stream));
            }
        });
        Ok(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // Somebody may have removed it.
    }
}

fn converse(gateway: &Gateway, mut stream: UnixStream) {
    let mut line = String::new();
    let Ok(reader) = stream.try_clone() else { return };
    if BufReader::new(reader.take(MAX_LINE_BYTES)).read_line(&mut line).is_err() {
        return;
    }
    let reply = match serde_json::from_str(&line) {
        Ok(request) => {
            answer(gateway, &request).unwrap_or_else(|error| Reply::Failed { why: error.to_string() })
        }
        Err(error) => Reply::Failed { why: format!("not understood: {error}") },
    };
    let mut line = serde_json::to_string(&reply).unwrap_or_default();
    line.push('\n');
    let _ = stream.write_all(line.as_bytes()); // The command may have been ended.
}

fn answer(gateway: &Gateway, request: &Request) -> Result<Reply> {
    match request {
        Request::Start { iqn } => gateway.start_target(iqn).map(|()| Reply::Done),
        Request::Stop { iqn } => gateway.stop_target(iqn).map(|()| Reply::Done),
        Request::Refresh { iqn } => gateway.refresh(iqn).map(|()| Reply::Done),
        Request::Grow { iqn, lun, size_bytes } => {
            let grown = gateway.grow(iqn, *lun, *size_bytes)?;
            Ok(if grown { Reply::Done } else { Reply::NotHere })
        }
        Request::State => Ok(Reply::State(gateway.report())),
    }
}
