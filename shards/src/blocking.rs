//! A blocking framed connection for command-line tools and tests.

use crate::buf::{Buf, BufMut};
use crate::node::{Framing, HEAD_BYTES, RawFrame};
use crate::tls::{Channel, Tls};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub struct BlockingConn {
    stream: Stream,
    framing: Framing,
}

/// The bytes of a connection, encrypted or not.
struct Stream {
    tcp: TcpStream,
    tls: Option<Box<Sealed>>,
}

struct Sealed {
    tls: Tls,
    /// Received and not read yet.
    received: Vec<u8>,
    /// Read and not asked for yet: from `taken` on.
    plain: Vec<u8>,
    taken: usize,
}

/// Asked of the socket at once on an encrypted connection.
const RECEIVE_BYTES: usize = 64 << 10;

impl BlockingConn {
    pub fn connect(to: SocketAddr, framing: Framing, timeout: Duration) -> io::Result<Self> {
        let tcp = TcpStream::connect_timeout(&to, timeout)?;
        tcp.set_nodelay(true)?;
        tcp.set_write_timeout(Some(timeout))?;
        Ok(BlockingConn { stream: Stream { tcp, tls: None }, framing })
    }

    /// As `connect`, through TLS ([`crate::tls`]).
    pub fn connect_encrypted(to: SocketAddr, framing: Framing, timeout: Duration) -> io::Result<Self> {
        let mut conn = Self::connect(to, framing, timeout)?;
        let until = Instant::now() + timeout;
        let tls = Tls::caller().map_err(io::Error::other)?;
        conn.stream.tls = Some(Box::new(Sealed { tls, received: Vec::new(), plain: Vec::new(), taken: 0 }));
        conn.stream.advance()?;
        while conn.channel() == Channel::Plain {
            let rest = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            conn.stream.tcp.set_read_timeout(Some(rest))?;
            conn.stream.receive()?;
        }
        Ok(conn)
    }

    pub fn channel(&self) -> Channel {
        self.stream.tls.as_ref().and_then(|sealed| sealed.tls.channel()).unwrap_or_default()
    }

    pub fn send(&mut self, frame: &RawFrame) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + frame.meta.len() + frame.payload.len());
        bytes.extend_from_slice(&frame.head);
        bytes.extend_from_slice(&frame.meta);
        bytes.extend_from_slice(&frame.payload);
        if let Some(sealed) = &mut self.stream.tls {
            let mut out = Vec::new();
            sealed.tls.seal(&bytes, &mut out).map_err(io::Error::other)?;
            bytes = out;
        }
        self.stream.tcp.write_all(&bytes)
    }

    /// The next frame; `TimedOut` or `WouldBlock` when none comes within `timeout`.
    pub fn receive(&mut self, timeout: Duration) -> io::Result<RawFrame> {
        self.stream.tcp.set_read_timeout(Some(timeout))?;
        let mut head = [0u8; HEAD_BYTES];
        self.stream.read_exact(&mut head)?;
        let lengths = (self.framing)(&head).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
        let meta = self.read_buf(lengths.meta_bytes)?;
        let payload = self.read_buf(lengths.payload_bytes)?;
        Ok(RawFrame { head, meta, payload })
    }

    fn read_buf(&mut self, len: usize) -> io::Result<Buf> {
        if len == 0 {
            return Ok(Buf::empty());
        }
        let mut buf = BufMut::zeroed(len);
        self.stream.read_exact(&mut buf)?;
        Ok(buf.freeze())
    }
}

impl Stream {
    /// Receives something; what it holds stands in `plain` then.
    fn receive(&mut self) -> io::Result<()> {
        let Stream { tcp, tls: Some(sealed) } = self else { return Ok(()) };
        let have = sealed.received.len();
        sealed.received.resize(have + RECEIVE_BYTES, 0);
        let received = tcp.read(&mut sealed.received[have..]);
        sealed.received.truncate(have + received.as_ref().map_or(0, |n| *n));
        match received? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => self.advance(),
        }
    }

    /// Reads what is received, and sends what TLS has to say to it.
    fn advance(&mut self) -> io::Result<()> {
        let Stream { tcp, tls: Some(sealed) } = self else { return Ok(()) };
        let Sealed { tls, received, plain, taken } = &mut **sealed;
        plain.drain(..std::mem::take(taken));
        let mut out = Vec::new();
        let used = tls.receive(received, &mut out, |bytes| {
            plain.extend_from_slice(bytes);
            Ok(())
        });
        tcp.write_all(&out)?;
        received.drain(..used.map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?);
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(sealed) = &mut self.tls else { return self.tcp.read(buf) };
            let ready = &sealed.plain[sealed.taken..];
            if !ready.is_empty() {
                let count = ready.len().min(buf.len());
                buf[..count].copy_from_slice(&ready[..count]);
                sealed.taken += count;
                return Ok(count);
            }
            self.receive()?;
        }
    }
}
