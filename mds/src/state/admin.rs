//! Administration: policies, settings, registries, the event log, and the service's own commands.

use super::answer::{Effect, Refusal, Reply, refuse};
use super::data::{Body, MOST_CS};
use super::{CsRecord, Internal, MdsRecord, Op, State, config};
use wire::attribute::Attribute;
use wire::cs_api::ChunkReport;
use wire::mds_api::{Event, MdsReply, Setting, Severity};
use wire::{ChunkId, CsId, FileId, MdsId, Role, Status};

pub fn no_such_mds(id: MdsId) -> String {
    format!("there is no MDS#{id}: 'pstorage stat' lists the metadata servers")
}

const MOST_EVENTS: usize = 20_000;

impl State {
    pub(super) fn admin_op(
        &mut self,
        now: u64,
        op: &Op,
        effects: &mut Vec<Effect>,
    ) -> Result<MdsReply, Refusal> {
        match op {
            Op::NewCs { host_id, host } => {
                if self.data.counters.next_cs >= MOST_CS {
                    return refuse(Status::NoSpace, "no more numbers for chunk servers");
                }
                let cs = CsId(self.data.counters.next_cs);
                self.data.counters.next_cs += 1;
                let record = CsRecord {
                    host_id: *host_id,
                    host: host.clone(),
                    location: String::new(),
                    tier: 0,
                    shards: 0,
                    dropped: false,
                    draining: false,
                };
                self.data.small.cs.insert(cs, record);
                Ok(MdsReply::NewCs { cs })
            }
            Op::SetPolicy { file, name, value, recursive } => {
                self.set_policy(*file, name, value, *recursive, effects)?;
                Ok(MdsReply::Done)
            }
            Op::AddMds { addr, raft_addr } => {
                let known = self.data.small.mds.iter().find(|(_, r)| r.addr == *addr).map(|(id, _)| *id);
                if let Some(id) = known {
                    return refuse(Status::Exists, format!("{addr} is MDS#{id} already"));
                }
                let id = MdsId(self.data.counters.next_mds);
                self.set_mds(id, MdsRecord { addr: *addr, raft_addr: *raft_addr });
                effects.push(Effect::MdsChanged { id, removed: false });
                self.log(now, "MDS", Severity::Info, format!("MDS#{id} at {addr} was added"), effects);
                Ok(MdsReply::Mds { id })
            }
            Op::RemoveMds { id } => {
                let Some(gone) = self.data.small.mds.remove(id) else {
                    return refuse(Status::NotFound, no_such_mds(*id));
                };
                effects.push(Effect::MdsChanged { id: *id, removed: true });
                self.log(
                    now,
                    "MDS",
                    Severity::Info,
                    format!("MDS#{id} at {} was removed", gone.addr),
                    effects,
                );
                Ok(MdsReply::Done)
            }
            Op::SetConfig { key, value } => {
                config::check(key, value).or_else(|why| refuse(Status::InvalidArgument, why))?;
                self.data.small.config.insert(key.clone(), value.clone());
                effects.push(Effect::ConfigChanged { key: key.clone() });
                self.log(now, "MDS", Severity::Info, format!("{key} was set to {value}"), effects);
                Ok(MdsReply::Done)
            }
            Op::LoadLicense { license, renew } => {
                let (new, old) = (&license.license, self.data.small.license.as_ref().map(|l| &l.license));
                match old {
                    _ if !renew => {}
                    None => {
                        return refuse(
                            Status::NotFound,
                            "there is no licence to be updated: use load-license",
                        );
                    }
                    Some(old) if old.key_number != new.key_number => {
                        let detail = format!(
                            "licence {} is not a newer one of {}: use load-license to replace it",
                            new.key_number, old.key_number
                        );
                        return refuse(Status::InvalidArgument, detail);
                    }
                    Some(old) if old.issued_s >= new.issued_s => {
                        let detail =
                            format!("licence {} was issued no later than the one there is", new.key_number);
                        return refuse(Status::InvalidArgument, detail);
                    }
                    Some(_) => {}
                }
                let message = format!("License {} of {} was loaded", new.key_number, new.owner);
                self.data.small.license = Some((**license).clone());
                self.log(now, "MDS", Severity::Info, message, effects);
                Ok(MdsReply::Done)
            }
            other => refuse(Status::BadRequest, format!("{other:?} is not an administrator's operation")),
        }
    }

    fn set_mds(&mut self, id: MdsId, record: MdsRecord) {
        self.data.counters.next_mds = self.data.counters.next_mds.max(id.0 + 1);
        self.data.small.mds.insert(id, record);
    }

    fn set_policy(
        &mut self,
        file: FileId,
        name: &str,
        value: &str,
        recursive: bool,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let attribute = Attribute::parse(name, value).or_else(|why| refuse(Status::InvalidArgument, why))?;
        let mut policy = self.inode(file)?.policy;
        attribute.change(&mut policy);
        let chunk_bytes = match attribute {
            Attribute::ChunkBytes(bytes) => Some(bytes),
            _ => None,
        };
        let mut targets = vec![file];
        let mut changed = Vec::new();
        while let Some(at) = targets.pop() {
            let Some(inode) = self.data.inodes.get_mut(at) else { continue };
            let holds_chunks = matches!(&inode.body, Body::File { chunks, .. } if !chunks.is_empty());
            match chunk_bytes {
                Some(_) if holds_chunks && at == file => {
                    return refuse(
                        Status::InvalidArgument,
                        "the chunk size of a file with data can't change",
                    );
                }
                Some(_) if holds_chunks => {}
                Some(bytes) => inode.chunk_bytes = bytes,
                None => inode.policy = policy,
            }
            match &inode.body {
                Body::Directory { .. } if recursive => {
                    targets.extend(self.entries(at, "").map(|(_, file)| file))
                }
                Body::File { chunks, .. } => changed.extend(chunks.chunks()),
                _ => {}
            }
        }
        changed.into_iter().for_each(|chunk| self.forget_minimum(chunk));
        effects.push(Effect::PolicyChanged);
        Ok(())
    }

    pub(super) fn internal(&mut self, now: u64, op: &Internal, effects: &mut Vec<Effect>) -> Reply {
        match op {
            Internal::Noop => {}
            Internal::RegisterCs { cs, host_id, host, location, tier, shards } => {
                let (dropped, draining) =
                    self.data.small.cs.get(cs).map_or((false, false), |r| (r.dropped, r.draining));
                if dropped || cs.0 >= self.data.counters.next_cs {
                    let detail = format!("CS#{cs} was dropped or never made");
                    return Refusal { status: Status::StaleHandle, detail }.into();
                }
                let record = CsRecord {
                    host_id: *host_id,
                    host: host.clone(),
                    location: location.clone(),
                    tier: *tier,
                    shards: *shards,
                    dropped: false,
                    draining,
                };
                self.data.small.cs.insert(*cs, record);
            }
            Internal::DropCs { cs, force } => return self.drop_cs(now, *cs, *force, effects),
            Internal::DrainCs { cs, draining } => return self.drain_cs(now, *cs, *draining, effects),
            Internal::ChangeSets { changes } => {
                return Reply::Sets(changes.iter().map(|c| self.change_set(c, effects)).collect());
            }
            Internal::Deleted { cs, chunks } => {
                for chunk in chunks {
                    self.data.pending_deletes.remove(&(*cs, *chunk));
                }
            }
            Internal::DeleteStrays { cs, chunks } => {
                // The state may have moved on since the master looked.
                let strays: Vec<ChunkId> =
                    chunks.iter().copied().filter(|c| self.is_stray(*cs, *c)).collect();
                self.must_delete(*cs, strays, effects);
            }
            Internal::BlocksGone { cs, chunk, first_block, blocks } => {
                if self.note_gone(*chunk, *first_block, *blocks) {
                    let message = self.gone_text(*cs, *chunk, *first_block, *blocks);
                    self.log(now, "CS", Severity::Err, message, effects);
                }
            }
            Internal::EndRevoked { leases } => self.end_revoked(leases, effects),
            Internal::ExpireClients { clients } => {
                for client in clients {
                    self.end_session(*client, true, effects);
                }
            }
            Internal::Event { system, severity, message } => {
                self.log(now, system, *severity, message.clone(), effects);
            }
            Internal::SetMds { id, addr, raft_addr } => {
                self.set_mds(*id, MdsRecord { addr: *addr, raft_addr: *raft_addr });
            }
            Internal::Found(foundation) => self.found(now, foundation),
            Internal::Renewed { generation, nodes } => self.note_renewed(*generation, nodes),
            Internal::Forked { cs, to, sequence } => self.forked(*cs, *to, *sequence, effects),
        }
        Reply::Wire(MdsReply::Done)
    }

    fn gone_text(&self, cs: CsId, chunk: ChunkId, first_block: u32, blocks: u32) -> String {
        let view = self.chunk(chunk);
        let place = view.and_then(|v| Some((self.attr(v.file).ok()?, v)));
        let where_in_file = place.map_or_else(String::new, |(attr, view)| {
            let block_bytes = wire::BLOCK_BYTES as u64;
            let start =
                u64::from(view.index) * u64::from(attr.chunk_bytes) + u64::from(first_block) * block_bytes;
            let end = start + u64::from(blocks) * block_bytes;
            format!(" ({}, bytes {start} to {end})", self.path_of(view.file))
        });
        format!(
            "{blocks} blocks of chunk {chunk} from {first_block} on{where_in_file} are gone: they are damaged on CS#{cs}, \
             and no other replica is in sync. Reading them fails until they are written anew; restore them from a backup"
        )
    }

    fn drain_cs(&mut self, now: u64, cs: CsId, draining: bool, effects: &mut Vec<Effect>) -> Reply {
        let Some(record) = self.data.small.cs.get_mut(&cs).filter(|r| !r.dropped) else {
            return Refusal { status: Status::NotFound, detail: format!("there is no CS#{cs}") }.into();
        };
        if std::mem::replace(&mut record.draining, draining) == draining {
            return Reply::Wire(MdsReply::Done);
        }
        let left = self.replica_count(cs);
        let message = match draining {
            true => format!("CS#{cs} is being removed: {left} replicas have to go elsewhere"),
            false => format!("The removal of CS#{cs} was cancelled: {left} replicas are still there"),
        };
        self.log(now, "MDS", Severity::Info, message, effects);
        effects.push(Effect::PolicyChanged);
        Reply::Wire(MdsReply::Done)
    }

    /// Without `force` only a server that holds nothing any more.
    fn drop_cs(&mut self, now: u64, cs: CsId, force: bool, effects: &mut Vec<Effect>) -> Reply {
        let there: Vec<ChunkId> = self.chunks_on(cs, ChunkId(0)).collect();
        let needed = there.iter().filter_map(|c| self.chunk(*c)).filter(|view| {
            let in_sync = |other: CsId| view.role_of(other) == Some(Role::InSync);
            in_sync(cs) && (!force || view.in_sync().all(|other| other == cs))
        });
        let needed = needed.count();
        if needed > 0 {
            let detail = match force {
                true => {
                    format!("CS#{cs} holds the only good replica of {needed} chunks; nothing was dropped")
                }
                false => format!("CS#{cs} still holds {needed} replicas; nothing was dropped"),
            };
            return Refusal { status: Status::InvalidArgument, detail }.into();
        }
        let Some(record) = self.data.small.cs.get_mut(&cs) else {
            return Refusal { status: Status::NotFound, detail: format!("there is no CS#{cs}") }.into();
        };
        (record.dropped, record.draining) = (true, false);
        for chunk in there {
            let Some(view) = self.chunk(chunk) else { continue };
            let action = super::SetAction::Remove { cs, force: true };
            self.change_set(&super::SetChange { chunk, epoch: view.epoch, action }, effects);
        }
        let deletes: Vec<ChunkId> = self.pending_deletes(cs).collect();
        deletes.into_iter().for_each(|chunk| {
            self.data.pending_deletes.remove(&(cs, chunk));
        });
        effects.push(Effect::CsDropped { cs });
        self.log(now, "MDS", Severity::Info, format!("CS#{cs} was dropped"), effects);
        Reply::Wire(MdsReply::Done)
    }

    pub(super) fn log(
        &mut self,
        time_ms: u64,
        system: &str,
        severity: Severity,
        message: String,
        effects: &mut Vec<Effect>,
    ) {
        let number = self.data.counters.next_event;
        self.data.counters.next_event += 1;
        self.data.events.insert(number, Event { number, time_ms, system: system.into(), severity, message });
        if self.data.events.len() > MOST_EVENTS {
            super::pop_first(&mut self.data.events);
        }
        effects.push(Effect::Logged { event: number });
    }

    pub(super) fn is_stray(&self, cs: CsId, chunk: ChunkId) -> bool {
        self.chunk(chunk).is_none_or(|view| view.role_of(cs).is_none()) && !self.is_fork_of(cs, chunk)
    }

    /// Reported chunks that the CS must not hold; propose `Internal::DeleteStrays` for them.
    pub fn strays(&self, cs: CsId, report: &[ChunkReport]) -> Vec<ChunkId> {
        report.iter().map(|r| r.chunk).filter(|c| self.is_stray(cs, *c)).collect()
    }

    /// What the CS has still to delete: send at registration (those of the shard) and again from time to time.
    pub fn pending_deletes(&self, cs: CsId) -> Box<dyn Iterator<Item = ChunkId> + '_> {
        let from = self.data.pending_deletes.range((cs, ChunkId(0))..);
        Box::new(from.take_while(move |(on, _)| *on == cs).map(|(_, chunk)| *chunk))
    }

    /// Value of a configuration key in its own unit; see [`config`] for the keys. 0 for an unknown one.
    pub fn config_number(&self, key: &str) -> u64 {
        let Some(key) = config::find(key) else { return 0 };
        let set = self.data.small.config.get(key.name).and_then(|value| key.number(value));
        set.unwrap_or(key.default)
    }

    pub fn settings(&self) -> Vec<Setting> {
        let setting = |k: &config::Key| Setting {
            key: k.name.into(),
            value: self.config_number(k.name),
            default: k.default,
            least: k.least,
            most: k.most,
            unit: k.unit.into(),
            meaning: k.meaning.into(),
        };
        config::KEYS.iter().map(setting).collect()
    }
}
