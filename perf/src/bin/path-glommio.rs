//! `path-glommio DIR [RECEIVE_BUFFER_BYTES]`: the request path of decision 001 on glommio 0.9, written as its manual
//! advises: one executor, a task per request, `DmaFile` and `DmaBuffer`, answers of a turn gathered into one send.
//! Prints the address it listens on; ends when its one client goes.

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::io::{DmaFile, OpenOptions};
use glommio::net::{Preallocated, TcpListener};
use glommio::{LocalExecutorBuilder, Placement};
use perf::cpu::Cpu;
use perf::path::{self, Places};
use shards::HEAD_BYTES;
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::task::Waker;

type Failure = Box<dyn std::error::Error>;

/// Answers that wait for the sender task.
#[derive(Default)]
struct Answers {
    bytes: Vec<u8>,
    sender: Option<Waker>,
    closed: bool,
}

impl Answers {
    fn add(&mut self, head: &path::Head) {
        self.bytes.extend_from_slice(head);
        self.wake();
    }

    fn close(&mut self) {
        self.closed = true;
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(sender) = self.sender.take() {
            sender.wake();
        }
    }
}

/// The next bytes to send, empty when there will be none.
async fn next_bytes(answers: &RefCell<Answers>) -> Vec<u8> {
    std::future::poll_fn(|context| {
        let mut a = answers.borrow_mut();
        if a.bytes.is_empty() && !a.closed {
            a.sender = Some(context.waker().clone());
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(std::mem::take(&mut a.bytes))
    })
    .await
}

async fn serve(dir: PathBuf, buffer_bytes: usize) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DSYNC);
    let file = Rc::new(options.dma_open(dir.join(path::FILE)).await.map_err(|e| e.to_string())?);
    let mut places = Places::new(file.file_size().await.map_err(|e| e.to_string())?);
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    println!("{}", listener.local_addr().map_err(|e| e.to_string())?);
    let stream = listener.accept().await.map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let stream = stream.buffered_with(Preallocated::new(buffer_bytes));
    let (mut from, mut to) = futures_lite::io::split(stream);
    let answers = Rc::new(RefCell::new(Answers::default()));
    let outgoing = answers.clone();
    let sender = glommio::spawn_local(async move {
        loop {
            let bytes = next_bytes(&outgoing).await;
            if bytes.is_empty() || to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    })
    .detach();
    let mut head = [0; HEAD_BYTES];
    while from.read_exact(&mut head).await.is_ok() {
        if path::kind(&head) == path::REPORT {
            answers.borrow_mut().add(&path::head(path::REPORT, 0, path::id(&head), Cpu::of_this_process()));
            continue;
        }
        let mut payload = file.alloc_dma_buffer(path::payload_bytes(&head));
        from.read_exact(payload.as_bytes_mut()).await?;
        let (answers, file, at, id) = (answers.clone(), file.clone(), places.next_offset(), path::id(&head));
        glommio::spawn_local(write(file, payload, at, answers, id)).detach();
    }
    answers.borrow_mut().close();
    sender.await;
    Ok(())
}

async fn write(
    file: Rc<DmaFile>,
    payload: glommio::io::DmaBuffer,
    at: u64,
    answers: Rc<RefCell<Answers>>,
    id: u64,
) {
    let wanted = payload.len();
    let written = file.write_at(payload, at).await.expect("the disk takes the block");
    assert_eq!(written, wanted);
    answers.borrow_mut().add(&path::head(path::WRITE, 0, id, Cpu::default()));
}

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("usage: path-glommio DIR [RECEIVE_BUFFER_BYTES]")?);
    let buffer_bytes = args.next().map_or(Ok(32 << 10), |b| b.parse())?;
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .name("path-glommio")
        .spawn(move || async move { serve(dir, buffer_bytes).await.map_err(|e| e.to_string()) })
        .map_err(|e| e.to_string())?;
    Ok(executor.join().map_err(|e| e.to_string())??)
}
