//! A LUN that is served: a file of the cluster under its write lease, and the state of the device, which all sessions share.

use crate::record::{Lun, Target};
use crate::store::Store;
use crate::worker::Place;
use crate::{Error, Result};
use client::call::SeekFor;
use client::{Call, ClientError, Cluster, File, WriteHow};
use iscsi::Nexus;
use iscsi::scsi::inquiry::Identity;
use iscsi::scsi::{Answer, Begun, BlockSize, Failure, JobId, LogicalUnit, Medium, UnitConfig};
use shards::Buf;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use wire::mds_api::LeaseMode;

/// What initiators see as the revision.
const REVISION: &str = "0001";

pub type Outcome = std::result::Result<Answer, Failure>;

pub struct Unit {
    iqn: String,
    lun: u16,
    store: Store,
    cluster: Cluster,
    file: File,
    state: Mutex<State>,
}

struct State {
    device: LogicalUnit,
    /// Where jobs wait that must not meet others.
    waiting: HashMap<JobId, Place>,
}

impl Unit {
    /// Takes the write lease of a LUN's file; waits for whoever gives it up.
    pub fn open(store: &Store, target: &Target, lun: &Lun) -> Result<Unit> {
        let path = store.lun_path(&target.iqn, lun.lun);
        let mode = if lun.read_only { LeaseMode::Read } else { LeaseMode::Write };
        let file = store.cluster().open(&path, mode).map_err(Error::cluster(&path))?;
        let size_bytes = file.attr().map_err(Error::cluster(&path))?.size_bytes;
        let block = BlockSize::from_bytes(lun.block_bytes)
            .filter(|block| size_bytes >= block.bytes_u64())
            .ok_or_else(|| {
                Error::Refused(format!("{path}: {size_bytes} bytes in blocks of {}", lun.block_bytes))
            })?;
        let identity = Identity {
            vendor: lun.vendor.clone(),
            product: lun.product.clone(),
            revision: REVISION.into(),
            serial: lun.serial.clone(),
            target: target.iqn.clone(),
        };
        let config = UnitConfig { identity, block, size_bytes, read_only: lun.read_only };
        let device = LogicalUnit::new(config, store.reservations(&target.iqn, lun.lun)?);
        Ok(Unit {
            iqn: target.iqn.clone(),
            lun: lun.lun,
            store: store.clone(),
            cluster: store.cluster().clone(),
            file,
            state: Mutex::new(State { device, waiting: HashMap::new() }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    pub fn connect(&self, nexus: &Nexus) {
        self.state().device.connect(nexus);
    }

    pub fn disconnect(&self, nexus: &Nexus) {
        self.state().device.disconnect(nexus);
    }

    pub fn reset(&self) {
        self.state().device.reset();
    }

    pub fn size_bytes(&self) -> u64 {
        self.state().device.config().size_bytes
    }

    /// Makes the file larger; initiators are told.
    pub fn grow(&self, size_bytes: u64) -> Result {
        self.file.truncate(size_bytes).map_err(Error::cluster(&self.store.lun_path(&self.iqn, self.lun)))?;
        self.state().device.resize(size_bytes);
        Ok(())
    }

    /// Begins a command; `place` is told when one that must wait may go on.
    pub fn begin(&self, nexus: &Nexus, cdb: &[u8; 16], data: Buf, place: impl FnOnce() -> Place) -> Begun {
        let mut state = self.state();
        let begun = state.device.begin(nexus, cdb, data);
        if let Begun::Wait(job) = &begun {
            state.waiting.insert(job.id, place());
        }
        begun
    }

    /// A job has ended, or will not go on; others may.
    pub fn end(&self, job: JobId) {
        let mut state = self.state();
        state.waiting.remove(&job);
        let freed = state.device.end(job);
        let places: Vec<Place> = freed.iter().filter_map(|job| state.waiting.remove(job)).collect();
        drop(state);
        places.into_iter().for_each(Place::go);
    }

    /// Does something on the medium; `done` runs on another thread, and must not block.
    pub fn submit(&self, medium: Medium, done: impl FnOnce(Outcome) + Send + 'static) {
        let file = self.file.id();
        let (iqn, lun) = (self.iqn.clone(), self.lun);
        let failed = move |error: ClientError| {
            tracing::warn!(iqn, lun, %error, "iscsi_medium_failed");
            failure(&error)
        };
        self.cluster.submit(match medium {
            Medium::Read { offset_bytes: offset, length_bytes: len } => {
                let whole = move |data: Buf| match data.len() == len {
                    true => Ok(Answer::Data(data)),
                    // Somebody has made the file shorter.
                    false => Err(Failure::Broken),
                };
                let done = move |read: client::Result<Buf>| done(read.map_err(failed).and_then(whole));
                Call::Read { file, offset, len, done: Box::new(done) }
            }
            Medium::Write { offset_bytes: offset, data } => {
                let done = Box::new(move |written: client::Result<()>| {
                    done(written.map(|()| Answer::Done).map_err(failed))
                });
                Call::Write { file, offset, data, how: WriteHow::default(), done }
            }
            Medium::Zero { offset_bytes: offset, length_bytes: len } => {
                let done = Box::new(move |zeroed: client::Result<()>| {
                    done(zeroed.map(|()| Answer::Done).map_err(failed))
                });
                Call::Zero { file, offset, len, keep_size: true, done }
            }
            Medium::Flush => {
                let done = Box::new(move |synced: client::Result<()>| {
                    done(synced.map(|()| Answer::Done).map_err(failed))
                });
                Call::Sync { file, done }
            }
            Medium::Seek { offset_bytes: offset, hole } => {
                let what = if hole { SeekFor::Hole } else { SeekFor::Data };
                let done = move |found: client::Result<Option<u64>>| {
                    done(found.map(Answer::Position).map_err(failed))
                };
                Call::Seek { file, offset, what, done: Box::new(done) }
            }
            Medium::Keep(reservations) => {
                // Several round trips, and rare: on a thread of its own. One at a time for each unit (its job is exclusive).
                let (store, iqn, lun) = (self.store.clone(), self.iqn.clone(), self.lun);
                std::thread::spawn(move || {
                    let kept = store.keep_reservations(&iqn, lun, &reservations);
                    done(kept.map(|()| Answer::Done).map_err(|error| {
                        tracing::warn!(iqn, lun, %error, "iscsi_reservations_not_kept");
                        Failure::Broken
                    }));
                });
                return;
            }
        });
    }

    /// Gives the file back.
    pub fn close(self) -> Result {
        let path = self.store.lun_path(&self.iqn, self.lun);
        self.file.close().map_err(Error::cluster(&path))
    }
}

fn failure(error: &ClientError) -> Failure {
    match error {
        ClientError::LeaseLost { .. } | ClientError::Closed(_) => Failure::Lost,
        _ if error.status() == Some(wire::Status::LeaseLost) => Failure::Lost,
        _ if error.status() == Some(wire::Status::NoSpace) => Failure::NoSpace,
        _ => Failure::Broken,
    }
}
