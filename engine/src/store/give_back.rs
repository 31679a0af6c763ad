//! Room of freed units goes back to the file system: holes are punched into `data`, in the background.
//!
//! A unit is given back when it has stayed free for a while ([`REST`]): one that is soon taken again keeps its room, since
//! a write into it needs no new metadata of the file system. A hole makes the file system wait for what is under way in the
//! file, so holes are few at a time, with pauses.
//!
//! Invariant: units under a punch are taken, so that nobody gets them meanwhile. What stood in a free unit is needed by
//! nobody: it was freed when the records that replace its content were durable, and a replay takes it as one that others
//! have used since.

use super::{NAMESPACE, Store, UNIT_BYTES, Waiting};
use shards::{Buf, Io, TimerId};
use std::io;
use std::time::Duration;

pub(super) const GIVE_BACK_TIMER: TimerId = TimerId(NAMESPACE | 4);
/// A unit that is free at two looks in a row, and was so between them, is given back.
const REST: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);
const MOST_UNITS: u32 = 64;

impl Store {
    pub(super) fn start_giving_back(&mut self, io: &mut dyn Io) {
        self.units.look_for_rest();
        io.set_timer(io.now().after(REST), GIVE_BACK_TIMER);
    }

    /// Punches the next hole, if there is one and the journal does not fill up meanwhile.
    pub(super) fn give_back(&mut self, io: &mut dyn Io) {
        if self.is_pressed() || !self.is_ready() {
            return io.set_timer(io.now().after(REST), GIVE_BACK_TIMER);
        }
        // Writes that come meanwhile must find room, and so must those that wait to be applied.
        let most = MOST_UNITS.min((self.spare_units() / 8) as u32);
        let Some((first, count)) = self.units.take_rested(most) else { return self.start_giving_back(io) };
        let (offset, len) = (u64::from(first) * UNIT_BYTES, u64::from(count) * UNIT_BYTES);
        let wait = self.expect(Waiting::GiveBack { first, count });
        io.punch(self.data, offset, len, wait);
    }

    pub(super) fn gave_back(&mut self, io: &mut dyn Io, first: u32, count: u32, result: io::Result<Buf>) {
        self.units.punched(first, count, result.is_ok());
        match result {
            Ok(_) => io.set_timer(io.now().after(PAUSE), GIVE_BACK_TIMER),
            // Nothing is lost but room, which is used again by what is written next.
            Err(error) => tracing::warn!(
                dir = self.config.dir,
                %error,
                "room_not_given_back: the file system takes no holes (fallocate -p); freed room stays in the file data"
            ),
        }
    }
}
