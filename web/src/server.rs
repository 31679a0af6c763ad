//! Connections: each has one request, a thread of its own and little time. One that is silent, slow or speaks nonsense holds nobody
//! up: when there are too many, the oldest has to go.

use crate::message::{Answer, Request};
use crate::tls::{TlsError, TlsFiles};
use rustls::{ServerConfig, ServerConnection};
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

const MAX_REQUEST_BYTES: usize = 8 << 10;
/// After a connection could not be accepted, mostly for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Threads of connections that were ended need a moment to end, too.
const ROOM_LOOK: Duration = Duration::from_millis(1);
const ROOM_LOOKS: u32 = 500;

/// Who answers.
pub type Site = Box<dyn Fn(&Request) -> Answer + Send + Sync>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections that are served at a time.
    pub connections: usize,
    /// For the request to come, and again for the answer to be taken.
    pub patience: Duration,
}

/// A port that was taken.
pub struct Server {
    listener: TcpListener,
    limits: Limits,
    tls: Option<Arc<ServerConfig>>,
}

struct Shop {
    limits: Limits,
    tls: Option<Arc<ServerConfig>>,
    site: Site,
}

impl Server {
    pub fn bind(addr: SocketAddr, limits: Limits) -> io::Result<Server> {
        Ok(Server { listener: TcpListener::bind(addr)?, limits, tls: None })
    }

    pub fn with_tls(self, files: &TlsFiles) -> Result<Server, TlsError> {
        Ok(Server { tls: Some(files.load()?), ..self })
    }

    pub fn addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers, on threads of its own, until the process ends.
    pub fn open(self, site: Site) {
        let shop = Arc::new(Shop { limits: self.limits, tls: self.tls, site });
        std::thread::spawn(move || {
            let mut served = Served { most: shop.limits.connections, all: VecDeque::new() };
            for stream in self.listener.incoming() {
                let Ok(stream) = stream else {
                    std::thread::sleep(ACCEPT_RETRY);
                    continue;
                };
                let Some(stream) = served.take(stream) else { continue };
                let shop = shop.clone();
                // Without memory for a thread the connection is closed.
                let _ = std::thread::Builder::new().name("web".into()).spawn(move || {
                    if let Err(error) = shop.serve(&stream) {
                        tracing::debug!(%error, "web_connection_failed");
                    }
                });
            }
        });
    }
}

/// Connections that have a thread, the oldest first.
struct Served {
    most: usize,
    all: VecDeque<Weak<TcpStream>>,
}

impl Served {
    /// Makes room by ending the oldest connection. `None` if none comes: the site still thinks for all of them.
    fn take(&mut self, stream: TcpStream) -> Option<Arc<TcpStream>> {
        for _ in 0..ROOM_LOOKS {
            self.all.retain(|served| served.strong_count() > 0);
            let too_many = (self.all.len() + 1).saturating_sub(self.most);
            for oldest in self.all.iter().take(too_many).filter_map(Weak::upgrade) {
                let _ = oldest.shutdown(Shutdown::Both);
            }
            if self.all.len() < 2 * self.most {
                let stream = Arc::new(stream);
                self.all.push_back(Arc::downgrade(&stream));
                return Some(stream);
            }
            std::thread::sleep(ROOM_LOOK);
        }
        None
    }
}

/// A connection whose time ends.
struct Timed<'a> {
    stream: &'a TcpStream,
    until: &'a Cell<Instant>,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.get().saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(to)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shop {
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        let until = Cell::new(Instant::now() + self.limits.patience);
        let again = || until.set(Instant::now() + self.limits.patience);
        let peer = stream.peer_addr()?.ip();
        let mut plain = Timed { stream, until: &until };
        match &self.tls {
            None => self.converse(&mut plain, peer, again)?,
            Some(config) => {
                let mut session = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
                self.converse(&mut rustls::Stream::new(&mut session, &mut plain), peer, again)?;
                session.send_close_notify();
                session.complete_io(&mut plain)?;
            }
        }
        stream.shutdown(Shutdown::Write)?;
        // To close a connection from which not all was read would take the answer from who still sends.
        let mut rest = [0; 1024];
        while plain.read(&mut rest)? > 0 {}
        Ok(())
    }

    fn converse(&self, stream: &mut (impl Read + Write), peer: IpAddr, again: impl Fn()) -> io::Result<()> {
        let (answer, head_only) = match read_head(stream)? {
            None => (Answer::plain(431, "the request is too long\n"), false),
            Some(head) => match Request::parse(&head, peer) {
                Ok(request) => ((self.site)(&request), request.head_only),
                Err(refused) => (refused, false),
            },
        };
        again();
        stream.write_all(&answer.encode(head_only))?;
        stream.flush()
    }
}

/// The request up to the empty line; `None` if that does not come within [`MAX_REQUEST_BYTES`].
fn read_head(stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let (mut head, mut part) = (Vec::new(), [0; 1024]);
    while head.len() < MAX_REQUEST_BYTES {
        match stream.read(&mut part) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => head.extend_from_slice(&part[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if head.windows(4).any(|w| w == b"\r\n\r\n") || head.windows(2).any(|w| w == b"\n\n") {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64ct::{Base64, Encoding};
    use std::path::Path;

    const LIMITS: Limits = Limits { connections: 4, patience: Duration::from_secs(20) };

    fn hello(limits: Limits, tls: Option<&TlsFiles>) -> SocketAddr {
        let mut server = Server::bind(([127, 0, 0, 1], 0).into(), limits).unwrap();
        if let Some(files) = tls {
            server = server.with_tls(files).unwrap();
        }
        let addr = server.addr().unwrap();
        server.open(Box::new(|request| Answer::new(200, "text/plain", request.path.clone().into_bytes())));
        addr
    }

    fn say(addr: SocketAddr, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.write_all(bytes).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn silent_connections_make_room_for_others() {
        let addr = hello(LIMITS, None);
        let mut silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(addr).unwrap()).collect();
        silent.iter_mut().for_each(|s| drop(s.write(b"GET /sil")));
        let began = Instant::now();
        assert!(say(addr, b"GET /here HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n/here"));
        assert!(began.elapsed() < LIMITS.patience / 4, "{:?}", began.elapsed());
    }

    #[test]
    fn time_and_size_are_bounded() {
        let addr = hello(Limits { patience: Duration::from_millis(200), ..LIMITS }, None);
        let began = Instant::now();
        assert_eq!(say(addr, b"GET /"), "");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(say(addr, &[b'x'; MAX_REQUEST_BYTES]).starts_with("HTTP/1.1 431 "));
        // The answer arrives, though its sender has not been heard to the end.
        let long = [b"POST / HTTP/1.1\r\n\r\n".as_slice(), &[b'x'; 100_000]].concat();
        assert!(say(addr, &long).starts_with("HTTP/1.1 405 "));
    }

    fn pem(label: &str, der: &[u8]) -> String {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", Base64::encode_string(der))
    }

    fn files(dir: &Path) -> (TlsFiles, rustls::RootCertStore) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
        let files = TlsFiles { certificates: dir.join("cert.pem"), key: dir.join("key.pem") };
        std::fs::write(&files.certificates, pem("CERTIFICATE", made.cert.der())).unwrap();
        std::fs::write(&files.key, pem("PRIVATE KEY", &made.signing_key.serialize_der())).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        (files, roots)
    }

    #[test]
    fn tls_is_spoken_where_there_is_a_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let (files, roots) = files(dir.path());
        let addr = hello(LIMITS, Some(&files));
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        let name = "localhost".try_into().unwrap();
        let mut session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut plain = TcpStream::connect(addr).unwrap();
        let mut stream = rustls::Stream::new(&mut session, &mut plain);
        stream.write_all(b"GET /sealed HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("\r\n\r\n/sealed"), "{text}");
        // And nothing else.
        let mut plain = TcpStream::connect(addr).unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut bytes = Vec::new();
        let _ = plain.read_to_end(&mut bytes);
        assert!(!bytes.starts_with(b"HTTP"), "{bytes:?}");
        let swapped = TlsFiles { certificates: files.key.clone(), key: files.certificates.clone() };
        let refused = swapped.load().unwrap_err().to_string();
        assert!(refused.contains("pem"), "{refused}");
    }
}
