//! A node on a ring of its own that takes orders from a program's main thread and answers it.

use shards::ring::{self, RingConfig, RunningShard};
use shards::{Framing, Node};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

pub struct Worker<Order: Send + 'static, Answer> {
    shard: Option<RunningShard<Order>>,
    answers: Receiver<Answer>,
}

impl<Order: Send + 'static, Answer: Send + 'static> Worker<Order, Answer> {
    pub fn start<N: Node<Message = Order>>(
        framing: Framing,
        make: impl FnOnce(Sender<Answer>) -> N + Send + 'static,
    ) -> Result<Self, String> {
        let (sender, answers) = channel();
        let config = RingConfig { arena_bytes: 16 << 20, ..RingConfig::new("pcs-bench", "/", framing) };
        let shard =
            ring::spawn(config, move || make(sender)).map_err(|e| format!("starting a thread: {e}"))?;
        Ok(Worker { shard: Some(shard), answers })
    }

    pub fn order(&self, order: Order) {
        if let Some(shard) = &self.shard {
            shard.mailbox().send(order);
        }
    }

    /// An answer, nothing yet, or why there will be none.
    pub fn answer(&mut self) -> Result<Option<Answer>, String> {
        match self.answers.recv_timeout(Duration::from_millis(100)) {
            Ok(answer) => Ok(Some(answer)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(match self.shard.take().map(RunningShard::join) {
                Some(Err(e)) => e.to_string(),
                _ => "the ring has ended".into(),
            }),
        }
    }
}

impl<Order: Send + 'static, Answer> Drop for Worker<Order, Answer> {
    fn drop(&mut self) {
        if let Some(shard) = self.shard.take() {
            shard.shutdown();
            let _ = shard.join(); // Whatever it says, its figures are in.
        }
    }
}
