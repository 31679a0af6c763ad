//! Connections of NBD clients: one thread reads requests and hands them to the cluster's client, one writes the answers in the order
//! in which they come. Payload is read from the socket into the buffer that goes out to the chunk servers, and written from
//! the buffer that came from one.

use super::protocol::{
    self, Agreed, CLIENT_FLAGS_BYTES, Command, Errno, GREETING, Next, OPTION_HEAD_BYTES, Offer,
    REQUEST_BYTES, Request,
};
use crate::call::{Call, Done, SeekFor, WriteHow};
use crate::error::ClientError;
use crate::{Cluster, File};
use shards::{Buf, BufMut};
use std::io::{self, IoSlice, Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use wire::mds_api::LeaseMode;

/// Bytes of requests under way of a connection; a client that sends more waits.
const WINDOW_BYTES: usize = 64 << 20;
/// What a request without payload counts as.
const REQUEST_COST_BYTES: usize = 4096;

/// A file that is offered. Its lease is held as long as this is.
pub struct Export {
    cluster: Cluster,
    file: File,
    offer: Offer,
}

impl Export {
    /// Opens a file of the cluster; one writer or many readers, as for a mount.
    pub fn open(cluster: &Cluster, path: &str, read_only: bool) -> crate::Result<Export> {
        let mode = if read_only { LeaseMode::Read } else { LeaseMode::Write };
        let file = cluster.open(path, mode)?;
        let size_bytes = file.attr()?.size_bytes;
        let name = path.trim_matches('/').to_string();
        Ok(Export { cluster: cluster.clone(), file, offer: Offer { name, size_bytes, read_only } })
    }

    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Gives the file back, when no connection uses it any more.
    pub fn close(self) -> crate::Result<()> {
        self.file.close()
    }
}

/// A connection, which both threads use.
pub trait Stream: Read + Write + Send + Sized + 'static {
    fn try_clone(&self) -> io::Result<Self>;
    /// Ends both directions, for the other thread too.
    fn end(&self);
}

impl Stream for std::os::unix::net::UnixStream {
    fn try_clone(&self) -> io::Result<Self> {
        self.try_clone()
    }
    fn end(&self) {
        let _ = self.shutdown(std::net::Shutdown::Both); // It may be gone already.
    }
}

impl Stream for std::net::TcpStream {
    fn try_clone(&self) -> io::Result<Self> {
        self.try_clone()
    }
    fn end(&self) {
        let _ = self.shutdown(std::net::Shutdown::Both); // It may be gone already.
    }
}

struct Answer {
    cookie: u64,
    says: protocol::Answer,
    data: Buf,
    cost_bytes: usize,
}

/// Bounds what is under way.
#[derive(Default)]
struct Window {
    used_bytes: Mutex<usize>,
    changed: Condvar,
}

impl Window {
    fn enter(&self, cost_bytes: usize) {
        let used = self.used_bytes.lock().expect("no panic under this lock");
        let full = |used: &mut usize| *used > 0 && *used + cost_bytes > WINDOW_BYTES;
        *self.changed.wait_while(used, full).expect("no panic under this lock") += cost_bytes;
    }

    fn leave(&self, cost_bytes: usize) {
        *self.used_bytes.lock().expect("no panic under this lock") -= cost_bytes;
        self.changed.notify_one();
    }

    fn wait_until_empty(&self) {
        let used = self.used_bytes.lock().expect("no panic under this lock");
        drop(self.changed.wait_while(used, |used| *used > 0).expect("no panic under this lock"));
    }
}

/// Serves one connection until it ends; all its requests have ended then too. Errors are of the connection.
pub fn serve<S: Stream>(export: &Arc<Export>, mut stream: S) -> io::Result<()> {
    let Some(agreed) = negotiate(export, &mut stream)? else { return Ok(()) };
    let window = Arc::new(Window::default());
    let (tell, hear) = channel();
    let writer = {
        let (stream, window) = (stream.try_clone()?, window.clone());
        std::thread::Builder::new().name("nbd-answers".into()).spawn(move || write(stream, &hear, &window))?
    };
    let outcome = read(export, agreed, &mut stream, &tell, &window);
    // Answers go out as long as somebody listens; what is under way ends in any case.
    window.wait_until_empty();
    drop(tell);
    let _ = writer.join(); // It does not panic.
    stream.end();
    outcome
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// False when the client has gone instead.
fn read_or_end(stream: &mut impl Read, into: &mut [u8]) -> io::Result<bool> {
    match stream.read_exact(into) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        other => other.map(|()| true),
    }
}

/// `None` when the client has ended the connection.
fn negotiate(export: &Export, stream: &mut impl Stream) -> io::Result<Option<Agreed>> {
    stream.write_all(&GREETING)?;
    let mut flags = [0; CLIENT_FLAGS_BYTES];
    if !read_or_end(stream, &mut flags)? {
        return Ok(None);
    }
    let zeroes = protocol::client_flags(flags).map_err(invalid)?;
    let mut agreed = Agreed::default();
    loop {
        let mut head = [0; OPTION_HEAD_BYTES];
        if !read_or_end(stream, &mut head)? {
            return Ok(None);
        }
        let (option, length) = protocol::option_head(&head).map_err(invalid)?;
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data)?;
        let (reply, next) = protocol::option(&export.offer, &mut agreed, option, &data, zeroes);
        stream.write_all(&reply)?;
        match next {
            Next::Option => {}
            Next::Requests => return Ok(Some(agreed)),
            Next::End => return Ok(None),
        }
    }
}

/// Reads requests until the client goes.
fn read(
    export: &Arc<Export>,
    agreed: Agreed,
    stream: &mut impl Stream,
    tell: &Sender<Answer>,
    window: &Window,
) -> io::Result<()> {
    loop {
        let mut head = [0; REQUEST_BYTES];
        if !read_or_end(stream, &mut head)? {
            return Ok(());
        }
        let request = match protocol::request(&export.offer, agreed, &head).map_err(invalid)? {
            Ok(request) => request,
            Err((cookie, why, payload_bytes)) => {
                io::copy(&mut stream.take(u64::from(payload_bytes)), &mut io::sink())?;
                window.enter(REQUEST_COST_BYTES);
                let cost_bytes = REQUEST_COST_BYTES;
                // A read has to be answered so by one who said it would be.
                let failed =
                    if agreed.structured { protocol::Answer::NoData } else { protocol::Answer::Failed };
                let says = failed(why);
                let _ = tell.send(Answer { cookie, says, data: Buf::empty(), cost_bytes });
                continue;
            }
        };
        let carries = matches!(request.command, Command::Read | Command::Write);
        let cost_bytes = REQUEST_COST_BYTES + if carries { request.length_bytes as usize } else { 0 };
        let payload = match request.command {
            Command::Disconnect => return Ok(()),
            Command::Write => {
                window.enter(cost_bytes);
                let mut payload = BufMut::scratch(request.length_bytes as usize);
                if let Err(error) = stream.read_exact(&mut payload) {
                    window.leave(cost_bytes);
                    return Err(error);
                }
                payload.freeze()
            }
            _ => {
                window.enter(cost_bytes);
                Buf::empty()
            }
        };
        match request.command {
            Command::BlockStatus => tell_status(export, request, cost_bytes, tell),
            _ => hand_in(export, agreed, request, payload, cost_bytes, tell),
        }
    }
}

/// Says how far the hole reaches, or the data, that begins where it is asked for.
fn tell_status(export: &Arc<Export>, request: Request, cost_bytes: usize, tell: &Sender<Answer>) {
    let Request { cookie, offset_bytes: offset, length_bytes, .. } = request;
    let (tell, file, holder) = (tell.clone(), export.file.id(), export.clone());
    let answer = move |says: Result<protocol::Answer, ClientError>| {
        let says = says.unwrap_or_else(|error| {
            tracing::warn!(name: "nbd_status_failed", offset, %error);
            protocol::Answer::NoData(errno(&error))
        });
        drop(holder);
        let _ = tell.send(Answer { cookie, says, data: Buf::empty(), cost_bytes });
    };
    let until = move |end: Option<u64>, is_hole| {
        let length = end.map_or(u64::from(length_bytes), |end| end - offset);
        let length_bytes = length.min(u64::from(length_bytes)) as u32;
        protocol::Answer::Status { length_bytes, is_hole }
    };
    let cluster = export.cluster.clone();
    let done: Done<Option<u64>> = Box::new(move |hole| match hole {
        Ok(Some(hole)) if hole > offset => answer(Ok(until(Some(hole), false))),
        Ok(_) => {
            let done: Done<Option<u64>> = Box::new(move |data| answer(data.map(|data| until(data, true))));
            cluster.submit(Call::Seek { file, offset, what: SeekFor::Data, done });
        }
        Err(error) => answer(Err(error)),
    });
    export.cluster.submit(Call::Seek { file, offset, what: SeekFor::Hole, done });
}

fn hand_in(
    export: &Arc<Export>,
    agreed: Agreed,
    request: Request,
    payload: Buf,
    cost_bytes: usize,
    tell: &Sender<Answer>,
) {
    let Request { cookie, offset_bytes: offset, length_bytes, fua, command } = request;
    let (tell, file, holder) = (tell.clone(), export.file.id(), export.clone());
    let answer = move |result: Result<Buf, ClientError>| {
        let is_structured = agreed.structured && command == Command::Read;
        let (says, data) = match result {
            Ok(data) if is_structured => {
                (protocol::Answer::Data { offset_bytes: offset, length_bytes }, data)
            }
            Ok(data) => (protocol::Answer::Done, data),
            Err(error) => {
                tracing::warn!(name: "nbd_request_failed", ?command, offset, length_bytes, %error);
                let errno = errno(&error);
                let failed = if is_structured { protocol::Answer::NoData } else { protocol::Answer::Failed };
                (failed(errno), Buf::empty())
            }
        };
        // Before the connection knows that nothing is under way any more.
        drop(holder);
        let _ = tell.send(Answer { cookie, says, data, cost_bytes }); // The writer takes all until the last.
    };
    if length_bytes == 0 && command != Command::Flush {
        return answer(Ok(Buf::empty()));
    }
    let len = length_bytes as usize;
    let done: Done<()> = Box::new({
        let answer = answer.clone();
        move |result| answer(result.map(|()| Buf::empty()))
    });
    export.cluster.submit(match command {
        Command::Read => {
            let whole = move |data: Buf| match data.len() == len {
                true => Ok(data),
                // Somebody has made the file shorter.
                false => Err(ClientError::Io { detail: "the file ends before the device does".into() }),
            };
            Call::Read { file, offset, len, done: Box::new(move |result| answer(result.and_then(whole))) }
        }
        Command::Write => Call::Write {
            file,
            offset,
            data: payload,
            how: WriteHow { sync: fua, ..WriteHow::default() },
            done,
        },
        Command::Trim | Command::WriteZeroes => {
            Call::Zero { file, offset, len: u64::from(length_bytes), keep_size: true, done }
        }
        Command::Flush | Command::Disconnect | Command::BlockStatus => Call::Sync { file, done },
    });
}

fn errno(error: &ClientError) -> Errno {
    match error.errno() {
        libc::ENOSPC => Errno::NoSpace,
        libc::EINVAL => Errno::Invalid,
        _ => Errno::Io,
    }
}

/// Writes answers until the reader has gone and all are out.
fn write(mut stream: impl Stream, hear: &Receiver<Answer>, window: &Window) {
    let mut broken = false;
    for Answer { cookie, says, data, cost_bytes } in hear {
        if !broken && let Err(error) = write_both(&mut stream, &protocol::answer(cookie, says), &data) {
            tracing::debug!(name: "nbd_client_gone", %error);
            // Wakes the reader.
            stream.end();
            broken = true;
        }
        drop(data);
        window.leave(cost_bytes);
    }
}

fn write_both(stream: &mut impl Write, head: &[u8], data: &[u8]) -> io::Result<()> {
    let (mut written, all) = (0, head.len() + data.len());
    while written < all {
        let parts = match written < head.len() {
            true => [IoSlice::new(&head[written..]), IoSlice::new(data)],
            false => [IoSlice::new(&data[written - head.len()..]), IoSlice::new(&[])],
        };
        match stream.write_vectored(&parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
