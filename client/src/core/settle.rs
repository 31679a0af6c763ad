//! Standing still for a clone. The MDS asks whoever writes to the file to settle: it ends what it has begun, says so, and begins no change
//! until the clone is made or a moment is over. Then it takes its lease anew, and with it nothing of what it knew of chunks: they may be
//! shared by now.
//!
//! Invariants:
//! - between Settle and the new lease no change is under way: one that holds all blocks of the file keeps the others waiting;
//! - nor is one acknowledged that is not: nothing is gathered meanwhile ([`super::gather`]);
//! - `settling` ends with a new lease or with the loss of the file, whatever happens to the session.

use super::ClientCore;
use shards::Io;
use shards::sabotage::{Sabotage, on};
use std::time::Duration;
use wire::FileId;
use wire::mds_api::{LeaseMode, MdsRequest};

/// Longest pause of the writer, for a clone that does not come. Who wants one asks again within a fraction of it.
const STAND_STILL: Duration = Duration::from_millis(300);

impl ClientCore {
    pub(super) fn settle(&mut self, io: &mut dyn Io, file: FileId) {
        let may = |f: &super::File| !f.is_settling() && matches!(f.lease, Some((_, LeaseMode::Write)));
        if !self.files.get(&file).is_some_and(may) {
            return;
        }
        self.write_gathered(io, file);
        let Ok(op) = self.op_begin(file, false) else { return };
        if let Some(f) = self.files.get_mut(&file) {
            f.settling = Some(op);
        }
        self.lock(
            io,
            file,
            op,
            0..u64::MAX,
            Box::new(move |core, io, _| {
                if core.files.get(&file).is_some_and(|f| f.settling == Some(op)) {
                    core.say_settled(io, file, op);
                } else {
                    core.unlock(io, file, op); // The lease has changed meanwhile.
                }
            }),
        );
    }

    /// All blocks are held.
    fn say_settled(&mut self, io: &mut dyn Io, file: FileId, op: u64) {
        let Some(f) = self.files.get(&file) else { return };
        // While a lease is asked for its coming ends it.
        let Some((lease, _)) = f.lease else { return };
        let lease = f.handed_in(file, lease);
        let client = self.mds.client().unwrap_or_default();
        self.mds_call(
            io,
            MdsRequest::Settle { client, lease },
            Box::new(move |core, io, answer| {
                let wait = if answer.is_ok() { STAND_STILL } else { Duration::ZERO };
                core.after(
                    io,
                    wait,
                    Box::new(move |core, io| {
                        if core.files.get(&file).is_some_and(|f| f.settling == Some(op)) {
                            core.go_on(io, file);
                        }
                    }),
                );
            }),
        );
    }

    /// The clone is made, or nobody wants it any more.
    pub(super) fn go_on(&mut self, io: &mut dyn Io, file: FileId) {
        let Some(f) = self.files.get_mut(&file).filter(|f| f.is_settling() && !f.asking) else { return };
        if on(Sabotage::KeepMapsOfClone) {
            return self.end_settling(io, file);
        }
        if let Some((lease, _)) = f.lease.take() {
            let until = io.now().after(self.config.busy_wait);
            self.ask_lease(io, file, LeaseMode::Write, lease, until);
        }
    }

    pub(super) fn end_settling(&mut self, io: &mut dyn Io, file: FileId) {
        let Some(op) = self.files.get_mut(&file).and_then(|f| f.settling.take()) else { return };
        self.unlock(io, file, op);
        self.op_end(io, file, op);
    }
}
