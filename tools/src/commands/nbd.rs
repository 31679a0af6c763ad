//! `nbd`: a file of the cluster as a block device for qemu and others, without a mount.

use crate::{Context, Outcome};
use clap::Args;
use client::Cluster;
use client::nbd::server::Stream;
use client::nbd::{Export, serve};
use shards::text::parse_size;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use wire::license::size_text;

#[derive(Args)]
pub struct Arguments {
    /// Path of the file in the cluster.
    file: String,
    /// Listen on this Unix socket (mode 0600).
    #[arg(long, value_name = "PATH", required_unless_present = "listen")]
    socket: Option<PathBuf>,
    /// Listen on this address of the loopback interface, such as 127.0.0.1:10809: NBD knows no passwords.
    #[arg(long, value_name = "IP:PORT", conflicts_with = "socket")]
    listen: Option<SocketAddr>,
    /// Make the file, with this size, if it is not there.
    #[arg(long, value_name = "SIZE", value_parser = |s: &str| parse_size(s, 1), conflicts_with = "read_only",
          allow_hyphen_values = true)]
    create: Option<u64>,
    /// Refuse changes. Several hosts can serve a file so at the same time.
    #[arg(short = 'r', long)]
    read_only: bool,
}

/// Serves until SIGTERM or SIGINT.
pub fn nbd(context: &Context, arguments: &Arguments) -> Outcome {
    // First of all, so that every thread inherits it.
    shards::host::block_termination_signals();
    let name = context.cluster()?;
    check_listening(arguments)?;
    let config = client::setup::load(&context.etc, name)?;
    let cluster = Cluster::connect(config).map_err(|e| e.to_string())?;
    let path = arguments.file.trim_matches('/');
    if let Some(size) = arguments.create {
        if size == 0 {
            return Err("--create 0: a device has at least a byte; give its size, such as 20G".into());
        }
        create(&cluster, path, size).map_err(|e| format!("/{path}: {e}"))?;
    }
    let export = Export::open(&cluster, path, arguments.read_only).map_err(|e| format!("/{path}: {e}"))?;
    let (export, listener) = (Arc::new(export), Listener::new(arguments)?);
    let how = if arguments.read_only { ", read only" } else { "" };
    let size = size_text(export.offer().size_bytes);
    println!("Serving /{path} of cluster '{name}' ({size}{how}) at {}", listener.uri(path));
    let connections = Arc::new(Connections::default());
    listener.accept(&export, &connections);
    shards::host::wait_for_termination();
    connections.end();
    drop(listener);
    let export = Arc::into_inner(export);
    let closed = export.map_or(Ok(()), Export::close);
    closed.and_then(|()| cluster.close()).map_err(|e| format!("/{path}: {e}"))
}

fn create(cluster: &Cluster, path: &str, size: u64) -> client::Result<()> {
    match cluster.create(path, 0o600, true) {
        Ok(file) => file.truncate(size).and_then(|()| file.close()),
        Err(error) if error.status() == Some(wire::Status::Exists) => Ok(()),
        Err(error) => Err(error),
    }
}

enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    fn new(arguments: &Arguments) -> Outcome<Listener> {
        if let Some(addr) = arguments.listen {
            let listener = TcpListener::bind(addr)
                .map_err(|e| format!("listening on {addr}: {}", shards::text::cause(&e)))?;
            return Ok(Listener::Tcp(listener));
        }
        let path = arguments.socket.as_deref().ok_or("name a --socket")?;
        let failed = shards::text::at(path);
        let listener = UnixListener::bind(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "{} is there already: name another --socket, or remove it if nothing serves there any more",
                path.display()
            ),
            _ => failed(e),
        })?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Listener::Unix(listener, path.into()))
    }

    fn uri(&self, file: &str) -> String {
        match self {
            Listener::Unix(_, path) => format!("nbd+unix:///{file}?socket={}", path.display()),
            Listener::Tcp(listener) => {
                let addr = listener.local_addr().map_or_else(|_| "?".into(), |addr| addr.to_string());
                format!("nbd://{addr}/{file}")
            }
        }
    }

    /// On a thread that ends with the process.
    fn accept(&self, export: &Arc<Export>, connections: &Arc<Connections>) {
        match self {
            Listener::Unix(listener, _) => {
                let listener = listener.try_clone();
                accept(listener.map(|l| move || l.accept().map(|(stream, _)| stream)), export, connections);
            }
            Listener::Tcp(listener) => {
                let listener = listener.try_clone();
                let next = listener.map(|l| {
                    move || {
                        let (stream, _) = l.accept()?;
                        stream.set_nodelay(true)?;
                        Ok(stream)
                    }
                });
                accept(next, export, connections);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, socket) = self {
            let _ = std::fs::remove_file(socket); // Somebody may have removed it.
        }
    }
}

fn accept<S: Stream>(
    next: std::io::Result<impl Fn() -> std::io::Result<S> + Send + 'static>,
    export: &Arc<Export>,
    connections: &Arc<Connections>,
) {
    let (export, connections) = (Arc::downgrade(export), connections.clone());
    std::thread::spawn(move || {
        let Ok(next) = next else { return };
        loop {
            let Ok(stream) = next() else {
                // Too many files, perhaps: later there may be room.
                std::thread::sleep(std::time::Duration::from_millis(100));
                continue;
            };
            let Some(export) = export.upgrade() else { return };
            connections.start(export, stream);
        }
    });
}

/// Those that stand: what ends each, and its thread.
#[derive(Default)]
struct Connections {
    all: Mutex<Vec<(Box<dyn Fn() + Send>, std::thread::JoinHandle<()>)>>,
}

impl Connections {
    fn start<S: Stream>(&self, export: Arc<Export>, stream: S) {
        let Ok(other) = stream.try_clone() else { return };
        let mut all = self.all.lock().expect("no panic under this lock");
        all.retain(|(_, thread)| !thread.is_finished());
        let thread = std::thread::spawn(move || {
            if let Err(error) = serve(&export, stream) {
                eprintln!("pstorage nbd: a connection ended: {error}");
            }
        });
        all.push((Box::new(move || other.end()), thread));
    }

    /// Ends all, and waits for what they have under way.
    fn end(&self) {
        let all = std::mem::take(&mut *self.all.lock().expect("no panic under this lock"));
        all.iter().for_each(|(end, _)| end());
        all.into_iter().for_each(|(_, thread)| drop(thread.join()));
    }
}

/// Before the cluster is asked: may it be listened there?
fn check_listening(arguments: &Arguments) -> Outcome {
    match (arguments.listen, &arguments.socket) {
        (Some(addr), _) if !addr.ip().is_loopback() => Err(format!(
            "{addr} is not an address of the loopback interface: NBD knows no passwords, and whoever reaches the port can \
             change the file. Run 'pstorage nbd' on the host that needs the device"
        )),
        (None, Some(socket)) => remove_stale(socket),
        _ => Ok(()),
    }
}

/// A socket that nobody listens on any more.
fn remove_stale(path: &Path) -> Outcome {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    if UnixStream::connect(path).is_ok() {
        return Err(format!("{}: somebody listens there already", path.display()));
    }
    std::fs::remove_file(path).map_err(shards::text::at(&path))
}
