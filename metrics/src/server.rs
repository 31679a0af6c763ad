//! Answers `GET /metrics` and `GET /healthz`, and nothing else.
//!
//! Each connection has one request, a thread of its own and little time, so that one that is silent, slow or speaks nonsense holds
//! nobody up; those beyond [`MAX_CONNECTIONS`] are closed at once.

use crate::figures::{Figures, Labels};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

const MAX_CONNECTIONS: usize = 16;
const MAX_REQUEST_BYTES: usize = 8 << 10;
/// To send a request; for the daemon to tell its figures; to take the answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// After a connection could not be accepted, mostly for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Asks the daemon, for so long at most. `None`: it does not answer, or does not serve yet.
pub type Source = Box<dyn Fn(Duration) -> Option<Figures> + Send + Sync>;

/// A port that was taken.
pub struct Door(TcpListener);

impl Door {
    pub(crate) fn new(listener: TcpListener) -> Door {
        Door(listener)
    }

    /// Answers, on threads of its own, until the process ends. `labels` go with every line.
    pub fn open(self, labels: Labels, source: Source) {
        let (shop, places) = (Arc::new(Shop { labels, source }), Arc::new(()));
        std::thread::spawn(move || {
            for stream in self.0.incoming() {
                let Ok(stream) = stream else {
                    std::thread::sleep(ACCEPT_RETRY);
                    continue;
                };
                if Arc::strong_count(&places) > MAX_CONNECTIONS {
                    continue;
                }
                let (shop, place) = (shop.clone(), places.clone());
                // Without memory for a thread the connection is closed.
                let _ = std::thread::Builder::new().name("metrics".into()).spawn(move || {
                    let _place = place;
                    if let Err(error) = shop.serve(stream) {
                        tracing::debug!(%error, "metrics_connection_failed");
                    }
                });
            }
        });
    }
}

/// Asks by `ask`, whose receiver of the figures may be dropped by who has none.
pub fn asking<T>(patience: Duration, ask: impl FnOnce(SyncSender<T>)) -> Option<T> {
    let (sender, answer) = sync_channel(1);
    ask(sender);
    answer.recv_timeout(patience).ok()
}

struct Shop {
    labels: Labels,
    source: Source,
}

struct Answer {
    status: &'static str,
    kind: &'static str,
    text: String,
}

impl Answer {
    fn plain(status: &'static str, text: &str) -> Answer {
        Answer { status, kind: "text/plain; charset=utf-8", text: text.into() }
    }
}

impl Shop {
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let answer = match read_head(&mut stream, Instant::now() + PATIENCE)? {
            Some(head) => self.answer(&head),
            None => Answer::plain("431 Request Header Fields Too Large", "the request is too long\n"),
        };
        let Answer { status, kind, text } = answer;
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            text.len()
        );
        send(&mut stream, (head + &text).as_bytes(), Instant::now() + PATIENCE)?;
        stream.shutdown(Shutdown::Write)
    }

    fn answer(&self, head: &[u8]) -> Answer {
        let line = head.split(|b| *b == b'\r' || *b == b'\n').next().unwrap_or_default();
        let mut words = line.split(|b| *b == b' ');
        let (method, target, version) = (words.next(), words.next(), words.next());
        let (Some(b"GET"), Some(target), true) =
            (method, target, version.is_some_and(|v| v.starts_with(b"HTTP/1.")))
        else {
            return Answer::plain("400 Bad Request", "only GET over HTTP/1 is answered here\n");
        };
        let figures = || (self.source)(PATIENCE);
        let unwell = || Answer::plain("503 Service Unavailable", "the server starts, or does not answer\n");
        // Who asks may add a query, which means nothing here.
        match target.split(|b| *b == b'?').next().unwrap_or_default() {
            b"/metrics" => match figures().map(|figures| figures.text(&self.labels)) {
                Some(Ok(text)) => Answer {
                    status: "200 OK",
                    kind: "application/openmetrics-text; version=1.0.0; charset=utf-8",
                    text,
                },
                Some(Err(_)) => Answer::plain("500 Internal Server Error", "the figures can't be written\n"),
                None => unwell(),
            },
            b"/healthz" => figures().map_or_else(unwell, |_| Answer::plain("200 OK", "ok\n")),
            _ => Answer::plain("404 Not Found", "here are /metrics and /healthz\n"),
        }
    }
}

/// The time left, or the error that there is none.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// The request up to the empty line; `None` if that does not come within [`MAX_REQUEST_BYTES`].
fn read_head(stream: &mut TcpStream, until: Instant) -> io::Result<Option<Vec<u8>>> {
    let (mut head, mut part) = (Vec::new(), [0; 1024]);
    while head.len() < MAX_REQUEST_BYTES {
        stream.set_read_timeout(Some(left(until)?))?;
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

fn send(stream: &mut TcpStream, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(until)?))?;
        match stream.write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
