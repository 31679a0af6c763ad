//! A chunk server as secondary: stores what the primary forwards, and adopts epochs.

use super::primary::BLOCK;
use super::{Action, Purpose, Replication};
use crate::store::{DiscardOp, Stamp, Store, WriteOp};
use shards::sabotage::{Sabotage, on};
use shards::{Buf, ConnId, Io};
use wire::data::first_mismatch;
use wire::{DataMeta, Epoch, Frame, Head, Kind, Prepared, Status, encode, flags};

impl Replication {
    pub(super) fn on_forward(&mut self, conn: ConnId, frame: Frame, store: &mut Store, io: &mut dyn Io) {
        let head = frame.head;
        if !head.has(flags::FILL) {
            self.pace.client_works_here(io.now());
        }
        let meta = match DataMeta::decode(&frame.meta) {
            Ok(meta) => meta,
            Err(why) => {
                tracing::warn!(%why, "malformed forward");
                return self.reply(conn, &head, Kind::Stored, Status::BadRequest);
            }
        };
        if let Err(status) = self.accepts_forward(&head, store) {
            return self.reply(conn, &head, Kind::Stored, status);
        }
        if let Some(grant) = &meta.grant {
            self.adopt(head.chunk, head.epoch, grant, store, io);
        }
        let stamp = Stamp {
            epoch: head.epoch,
            sequence: meta.sequence,
            committed: meta.committed,
            lease: meta.lease,
        };
        if head.kind != Kind::ForwardDiscard && first_mismatch(&frame.payload, &meta.crcs).is_some() {
            return self.reply(conn, &head, Kind::Stored, Status::Checksum);
        }
        let length = if head.kind == Kind::Forward { frame.payload.len() as u32 } else { head.length_bytes };
        let blocks = head.offset_bytes / BLOCK..head.offset_bytes.saturating_add(length).div_ceil(BLOCK);
        self.written.note(head.chunk, head.epoch, &blocks);
        let ticket = self.ticket(Purpose::Forwarded { conn, head, began: io.now() });
        if head.kind == Kind::ForwardDiscard {
            let op = DiscardOp {
                chunk: head.chunk,
                stamp,
                offset_bytes: head.offset_bytes,
                length_bytes: head.length_bytes,
            };
            return store.discard(io, ticket, op);
        }
        let op = WriteOp {
            chunk: head.chunk,
            stamp,
            offset_bytes: head.offset_bytes,
            payload: frame.payload,
            crcs: meta.crcs,
        };
        store.write(io, ticket, op);
    }

    fn accepts_forward(&self, head: &Head, store: &Store) -> Result<(), Status> {
        let known = self.epoch_of(head.chunk, store);
        if head.epoch < known && !on(Sabotage::SkipEpochCheck) {
            return Err(Status::OldEpoch);
        }
        let held = store.chunk(head.chunk).is_some() || self.chunks.contains_key(&head.chunk);
        match (held, head.has(flags::EXPECT_EMPTY)) {
            (true, true) => Err(Status::NotEmpty),
            (false, true) => Ok(()),
            // Any other write needs a Prepare of its epoch before it.
            _ if head.epoch > known || known == Epoch(0) => Err(Status::UnknownChunk),
            _ => Ok(()),
        }
    }

    pub(super) fn on_prepare(&mut self, conn: ConnId, frame: Frame, store: &mut Store, io: &mut dyn Io) {
        let head = frame.head;
        let known = self.epoch_of(head.chunk, store);
        let meta = DataMeta::decode(&frame.meta);
        let Ok(DataMeta { grant: Some(grant), .. }) = meta else {
            return self.reply(conn, &head, Kind::Prepared, Status::BadRequest);
        };
        if head.epoch < known {
            return self.reply(conn, &head, Kind::Prepared, Status::OldEpoch);
        }
        // A chunk we never had is made empty: from now on there is something that knows the epoch.
        self.adopt(head.chunk, head.epoch, &grant, store, io);
        let ticket = self.ticket(Purpose::Prepare { conn, head });
        store.set_epoch(io, ticket, head.chunk, head.epoch);
    }

    /// Answers Prepares whose chunks have fallen quiet: only then is the tail complete.
    pub(super) fn answer_prepares(&mut self, store: &Store) {
        let waiting = std::mem::take(&mut self.prepared);
        for (conn, head) in waiting {
            if !store.is_quiet(head.chunk) {
                self.prepared.push((conn, head));
            } else if self.epoch_of(head.chunk, store) != head.epoch {
                self.reply(conn, &head, Kind::Prepared, Status::OldEpoch);
            } else {
                let answer = store.chunk(head.chunk).map_or_else(Prepared::default, |info| Prepared {
                    damaged: self.damaged.contains_key(&head.chunk),
                    last_sequence: info.last_sequence,
                    committed: info.committed,
                    tail: info.tail.clone(),
                });
                let reply = head.reply(Kind::Prepared, Status::Ok);
                self.actions.push(Action::Reply(conn, Frame::new(reply, &encode!(&answer), Buf::empty())));
            }
        }
    }
}
