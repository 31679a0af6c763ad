//! A blocking framed connection for command-line tools and tests.

use crate::buf::{Buf, BufMut};
use crate::node::{Framing, HEAD_BYTES, RawFrame};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub struct BlockingConn {
    stream: TcpStream,
    framing: Framing,
}

impl BlockingConn {
    pub fn connect(to: SocketAddr, framing: Framing, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(BlockingConn { stream, framing })
    }

    pub fn send(&mut self, frame: &RawFrame) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + frame.meta.len() + frame.payload.len());
        bytes.extend_from_slice(&frame.head);
        bytes.extend_from_slice(&frame.meta);
        bytes.extend_from_slice(&frame.payload);
        self.stream.write_all(&bytes)
    }

    /// The next frame; `TimedOut` or `WouldBlock` when none comes within `timeout`.
    pub fn receive(&mut self, timeout: Duration) -> io::Result<RawFrame> {
        self.stream.set_read_timeout(Some(timeout))?;
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
