//! The production driver of the seam: one io_uring completion loop per thread, running one node.
//!
//! A turn of the loop: fire due timers, hand every pending event to the node, push what the node asked for onto
//! the submission queue, enter the kernel once (submit all, wait for one completion or the next timer), collect
//! completions into events. One system call per turn, whatever the number of requests in it.
//!
//! Invariants:
//! - memory that the kernel may touch (buffers, iovecs, addresses) is owned by the operation's entry in
//!   `Operations` until its completion arrives; nothing else frees or moves it;
//! - a connection's descriptor is closed only when neither a receive nor a send is under way on it;
//! - `Closed` is delivered exactly once per connection, after its last frame.

mod disk;
mod mailbox;
mod net;
mod world;

pub use disk::{replace_file, replace_secret};
pub use mailbox::{Mailbox, Pulse};
use mailbox::{Post, Shared};
use world::{Happening, World};

use crate::arena::Arena;
use crate::buf::use_arena;
use crate::node::{Event, Framing, Io, Node};
use io_uring::IoUring;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How to run a node.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// For logs and the thread's name.
    pub name: String,
    /// Directory that the node's relative paths start from.
    pub dir: PathBuf,
    /// Core to pin the thread to.
    pub core: Option<usize>,
    /// Reads body lengths out of frame headers ([`crate::Framing`]).
    pub framing: Framing,
    /// Submission queue entries, a power of two.
    pub entries: u32,
    /// Memory for disk transfers that the ring knows in advance, bytes; 0: none.
    pub arena_bytes: usize,
}

impl RingConfig {
    pub fn new(name: impl Into<String>, dir: impl Into<PathBuf>, framing: Framing) -> Self {
        RingConfig { name: name.into(), dir: dir.into(), core: None, framing, entries: 512, arena_bytes: 0 }
    }
}

/// Why a loop could not run or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(
        "the kernel refuses io_uring ({source}); kernel {kernel}. pstorage needs Linux 5.19 or newer, \
         'sysctl kernel.io_uring_disabled=0', and in a container a seccomp profile that allows io_uring"
    )]
    Refused { kernel: String, source: io::Error },
    #[error("io_uring: {0}")]
    Ring(#[from] io::Error),
    /// The node stopped itself with this reason.
    #[error("{0}")]
    Node(String),
    #[error("the thread of {0} panicked; its log has the place")]
    Panicked(String),
}

/// A running shard.
pub struct RunningShard<M> {
    name: String,
    mailbox: Mailbox<M>,
    thread: JoinHandle<Result<(), RunError>>,
}

impl<M: Send + 'static> RunningShard<M> {
    pub fn mailbox(&self) -> Mailbox<M> {
        self.mailbox.clone()
    }

    /// Asks the node to finish ([`Event::Shutdown`]).
    pub fn shutdown(&self) {
        self.mailbox.shutdown();
    }

    pub fn pulse(&self) -> Pulse {
        self.mailbox.pulse()
    }

    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    pub fn join(self) -> Result<(), RunError> {
        self.thread.join().unwrap_or(Err(RunError::Panicked(self.name)))
    }
}

/// Starts a thread with a loop that runs the node `make` returns (called on that thread).
pub fn spawn<N, F>(config: RingConfig, make: F) -> io::Result<RunningShard<N::Message>>
where
    N: Node,
    F: FnOnce() -> N + Send + 'static,
{
    let shared = Arc::new(Shared::new()?);
    let mailbox = Mailbox::new(shared.clone());
    let name = config.name.clone();
    let thread = std::thread::Builder::new()
        .name(name.chars().take(15).collect())
        .spawn(move || run(config, make(), shared))?;
    Ok(RunningShard { name, mailbox, thread })
}

fn run<N: Node>(config: RingConfig, node: N, shared: Arc<Shared<N::Message>>) -> Result<(), RunError> {
    if let Some(core) = config.core {
        pin(core);
    }
    let ring = build_ring(config.entries).map_err(explain_no_ring)?;
    // Without a table nothing can be registered in it, and files are named by their descriptors.
    if let Err(error) = ring.submitter().register_files_sparse(disk::MOST_REGISTERED) {
        tracing::debug!(%error, "files_not_registered");
    }
    let arena = register_arena(&ring, config.arena_bytes);
    use_arena(arena.clone());
    let waker = shared.clone();
    let mut world = World::new(&config, Box::new(move |op, result| waker.post(Post::Blob { op, result })));
    world.arena = arena;
    Loop { config, ring, node, world, shared, outcome: None, ended_at: None, spare_posts: VecDeque::new() }
        .run()
}

/// Memory that the kernel holds from the start. Where it refuses, transfers hold and let go their own pages.
fn register_arena(ring: &IoUring, bytes: usize) -> Option<Arc<Arena>> {
    let arena = Arc::new(Arena::new(bytes)?);
    // SAFETY: the kernel holds the pages for itself; the memory is freed after the ring has ended, or without harm before.
    match unsafe { ring.submitter().register_buffers(&[arena.iovec()]) } {
        Ok(()) => Some(arena),
        Err(error) => {
            tracing::warn!(
                %error,
                "buffers_not_registered: transfers cost some CPU more; 'ulimit -l unlimited' (systemd: \
                 LimitMEMLOCK=infinity) lets the kernel hold them"
            );
            None
        }
    }
}

fn explain_no_ring(source: io::Error) -> RunError {
    match source.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM | libc::EACCES | libc::EINVAL) => {
            RunError::Refused { kernel: crate::host::kernel_version(), source }
        }
        _ => RunError::Ring(source),
    }
}

fn pin(core: usize) {
    let mut set = nix::sched::CpuSet::new();
    let pinned =
        set.set(core).and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        tracing::warn!(core, %error, "cannot pin shard to core");
    }
}

fn build_ring(entries: u32) -> io::Result<IoUring> {
    let best = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(entries * 4)
        .build(entries);
    match best {
        Ok(ring) => Ok(ring),
        // Kernels before 6.1 know neither flag.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().setup_cqsize(entries * 4).build(entries)
        }
        Err(e) => Err(e),
    }
}

struct Loop<N: Node> {
    config: RingConfig,
    ring: IoUring,
    node: N,
    world: World,
    shared: Arc<Shared<N::Message>>,
    outcome: Option<Result<(), String>>,
    ended_at: Option<Instant>,
    /// Empty; kept for its memory.
    spare_posts: VecDeque<Post<N::Message>>,
}

/// Longest wait without a timer; bounds the cost of a lost wake-up to this, should there ever be one.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// How long a node that has ended waits for its frames to leave: a peer that does not read must not hold it up.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Requests gathered before the kernel gets them in the middle of a turn. A disk that has ended all it had must not wait
/// until the whole turn is over: at depth 32 the ring alone reads 25 % more with 4 than with a submission per turn, and
/// hardly more with 1, which costs a system call for each.
const MOST_GATHERED: usize = 4;
/// Passes over what is due in one turn.
const MOST_PASSES: usize = 8;
/// A turn that takes longer than this starves everybody on the shard.
const STALL: Duration = Duration::from_millis(100);

impl<N: Node> Loop<N> {
    fn run(mut self) -> Result<(), RunError> {
        self.world.watch_mailbox(self.shared.eventfd());
        self.deliver(Event::Start);
        loop {
            let began = Instant::now();
            self.turn();
            self.shared.turned(!self.world.listeners.is_empty());
            let took = began.elapsed();
            if took > STALL {
                tracing::warn!(node = %self.config.name, took_ms = took.as_millis() as u64, "shard stalled");
            }
            if self.outcome.is_none() {
                self.outcome = self.world.take_stop();
            }
            if self.outcome.is_some() {
                let since = *self.ended_at.get_or_insert_with(Instant::now);
                if self.world.drained() || since.elapsed() > LAST_WORDS {
                    break;
                }
            }
            self.enter()?;
            self.reap();
        }
        match self.outcome.take() {
            Some(Err(reason)) => Err(RunError::Node(reason)),
            _ => Ok(()),
        }
    }

    /// Hands everything that is due to the node. What its completions ask for meanwhile (a client's program that sends its
    /// next request when one has ended) belongs to the same turn, within reason.
    fn turn(&mut self) {
        for _ in 0..MOST_PASSES {
            self.pass();
            if self.shared.is_empty() {
                return;
            }
        }
    }

    fn pass(&mut self) {
        while let Some(id) = self.world.due_timer() {
            self.deliver(Event::Timer { id });
        }
        let mut posts = self.shared.take(std::mem::take(&mut self.spare_posts));
        for post in posts.drain(..) {
            match post {
                Post::Message(message) => self.deliver(Event::Message(message)),
                Post::Shutdown => self.deliver(Event::Shutdown),
                Post::Blob { op, result } => self.deliver(Event::Disk { op, result }),
            }
        }
        self.spare_posts = posts;
        while let Some(happening) = self.world.next_happening() {
            self.deliver(match happening {
                Happening::Accepted { conn, peer } => Event::Accepted { conn, peer },
                Happening::Connected { conn } => Event::Connected { conn },
                Happening::Frame { conn, frame } => Event::Frame { conn, frame },
                Happening::Closed { conn, why } => Event::Closed { conn, why },
                Happening::Disk { op, result } => Event::Disk { op, result },
            });
        }
    }

    fn deliver(&mut self, event: Event<N::Message>) {
        // A node that has stopped hears nothing more.
        if self.outcome.is_none() {
            self.node.handle(event, &mut self.world as &mut dyn Io);
            self.outcome = self.world.take_stop();
            if self.world.backlog.len() >= MOST_GATHERED {
                self.push();
                // Whatever is wrong with the ring, `enter` meets it too.
                let _ = self.ring.submit();
            }
        }
    }

    /// Submits everything asked for and waits for a completion, unless there is something to do already.
    fn enter(&mut self) -> Result<(), RunError> {
        self.world.files.register(&self.ring.submitter());
        let small_sends = self.world.start_sends();
        let sleeps = !self.world.has_happenings() && self.shared.sleep();
        let until = self.world.next_timer();
        let sleeps = sleeps && until.is_none_or(|at| at > self.world.now());
        if sleeps {
            let longest = self.world.now().after(IDLE_WAIT);
            self.world.wake_at(until.map_or(longest, |at| at.min(longest)));
        }
        while !self.push() {
            self.ring.submit()?;
        }
        // A small send ends while it is submitted: a wait for one completion would end with it. Should it not, because the
        // peer does not read, then what comes first meanwhile waits for the next completion or the next alarm.
        let result = if sleeps { self.ring.submit_and_wait(1 + small_sends) } else { self.ring.submit() };
        self.shared.awake();
        match result {
            Ok(_) => Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Moves requests to the submission queue; false when it is full.
    fn push(&mut self) -> bool {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.world.backlog.front() {
            // SAFETY: everything the entry points to is owned by its operation in `World::operations`
            // until the completion with its user data is reaped.
            if unsafe { queue.push(entry) }.is_err() {
                return false;
            }
            self.world.backlog.pop_front();
        }
        true
    }

    fn reap(&mut self) {
        let mut completions = std::mem::take(&mut self.world.reaped);
        completions.extend(self.ring.completion().map(|c| (c.user_data(), c.result(), c.flags())));
        for (user_data, result, flags) in completions.drain(..) {
            self.world.complete(user_data, result, flags);
        }
        self.world.reaped = completions;
    }
}

impl<N: Node> Drop for Loop<N> {
    fn drop(&mut self) {
        // The kernel may still write into buffers of operations under way (receives, accepts). They are
        // leaked on purpose rather than freed under its hands; the ring itself cancels them on close.
        std::mem::forget(std::mem::take(&mut self.world.operations));
        self.world.close_descriptors();
    }
}

#[cfg(test)]
mod tests;
