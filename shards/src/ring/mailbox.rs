//! Messages from other threads into a loop: a locked queue and an eventfd, written only when the loop sleeps.

use crate::buf::Buf;
use crate::node::OpId;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub(super) enum Post<M> {
    Message(M),
    Shutdown,
    Blob { op: OpId, result: io::Result<Buf> },
}

pub(super) struct Shared<M> {
    queue: Mutex<VecDeque<Post<M>>>,
    sleeping: AtomicBool,
    eventfd: OwnedFd,
    /// Written by the loop only.
    turns: AtomicU64,
    serves: AtomicBool,
}

/// How far a loop is, as other threads see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pulse {
    /// Grows at least once a second.
    pub turns: u64,
    /// It listens for connections.
    pub serves: bool,
}

impl<M> Shared<M> {
    pub fn new() -> io::Result<Self> {
        // SAFETY: plain system call without pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nothing else owns.
        let eventfd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Shared {
            queue: Mutex::new(VecDeque::new()),
            sleeping: AtomicBool::new(false),
            eventfd,
            turns: AtomicU64::new(0),
            serves: AtomicBool::new(false),
        })
    }

    pub fn turned(&self, serves: bool) {
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.serves.store(serves, Ordering::Relaxed);
    }

    pub fn pulse(&self) -> Pulse {
        Pulse { turns: self.turns.load(Ordering::Relaxed), serves: self.serves.load(Ordering::Relaxed) }
    }

    pub fn eventfd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }

    pub fn post(&self, post: Post<M>) {
        self.queue.lock().expect("no panic under this lock").push_back(post);
        if self.sleeping.swap(false, Ordering::SeqCst) {
            let one = 1u64.to_ne_bytes();
            // SAFETY: writes 8 bytes of a live array to a descriptor we own. It can't block: the counter
            // would have to overflow first.
            unsafe { libc::write(self.eventfd(), one.as_ptr().cast(), 8) };
        }
    }

    /// What has come, in exchange for an empty list.
    pub fn take(&self, empty: VecDeque<Post<M>>) -> VecDeque<Post<M>> {
        std::mem::replace(&mut *self.queue.lock().expect("no panic under this lock"), empty)
    }

    pub fn is_empty(&self) -> bool {
        self.queue.lock().expect("no panic under this lock").is_empty()
    }

    /// Announces that the loop is about to sleep; false when there is something to do first.
    pub fn sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        let empty = self.queue.lock().expect("no panic under this lock").is_empty();
        if !empty {
            self.awake();
        }
        empty
    }

    pub fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }
}

/// Sends messages to a node from any thread.
pub struct Mailbox<M> {
    shared: Arc<Shared<M>>,
}

impl<M> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Mailbox { shared: self.shared.clone() }
    }
}

impl<M> Mailbox<M> {
    pub(super) fn new(shared: Arc<Shared<M>>) -> Self {
        Mailbox { shared }
    }

    /// Queues a message. Messages to a node that has ended are dropped with its last mailbox.
    pub fn send(&self, message: M) {
        self.shared.post(Post::Message(message));
    }

    pub fn shutdown(&self) {
        self.shared.post(Post::Shutdown);
    }

    pub fn pulse(&self) -> Pulse {
        self.shared.pulse()
    }
}
