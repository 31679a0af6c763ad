//! Client sessions and leases: one writer or many readers per file.

use super::answer::{Effect, Refusal, refuse};
use super::data::{LeaseRecord, Session};
use super::{Lease, State};
use imbl::{OrdMap, OrdSet};
use shards::sabotage::{Sabotage, on};
use wire::mds_api::{ClientInfo, LeaseMode, MdsReply};
use wire::{ClientId, FileId, LeaseId, Status};

/// Revoked leases remembered; a lease older than these can't be alive anywhere.
const MOST_REVOKED: usize = 10_000;

impl State {
    /// The session of this nonce, made if it isn't there.
    pub(super) fn open_session(&mut self, host: &str, mount_point: &str, nonce: u64) -> ClientId {
        let same = self.data.sessions.iter().find(|(_, s)| s.nonce == nonce && s.host == host);
        if let Some((client, _)) = same {
            return *client;
        }
        let client = ClientId(self.data.counters.next_client);
        self.data.counters.next_client += 1;
        let session = Session {
            host: host.into(),
            mount_point: mount_point.into(),
            nonce,
            files: OrdSet::new(),
            answers: OrdMap::new(),
        };
        self.data.sessions.insert(client, session);
        client
    }

    /// Ends a session; with `revoke` its leases are revoked (it may still be writing somewhere).
    pub(super) fn end_session(&mut self, client: ClientId, revoke: bool, effects: &mut Vec<Effect>) {
        let Some(session) = self.data.sessions.remove(&client) else { return };
        for file in session.files {
            let Some(inode) = self.data.inodes.get_mut(file) else { continue };
            let gone: Vec<LeaseId> = inode.change_extras(|extras| {
                extras.leases.extract_if(.., |l| l.client == client).map(|l| l.id).collect()
            });
            gone.iter().for_each(|lease| {
                self.data.revoking.remove(lease);
            });
            if revoke && !on(Sabotage::KeepSilentLeases) {
                self.note_revoked(file, gone.into_iter().map(|l| (l, client)).collect(), effects);
            }
            self.drop_if_unused(file, effects);
        }
        effects.push(Effect::SessionEnded { client });
    }

    fn note_revoked(&mut self, file: FileId, leases: Vec<(LeaseId, ClientId)>, effects: &mut Vec<Effect>) {
        if leases.is_empty() {
            return;
        }
        self.data.small.revoked.extend(&leases);
        let surplus = self.data.small.revoked.len().saturating_sub(MOST_REVOKED);
        self.data.small.revoked.drain(..surplus);
        effects.push(Effect::RevokeLeases { file, leases });
    }

    /// Grants a lease, or says who is in the way.
    pub(super) fn open(
        &mut self,
        client: ClientId,
        file: FileId,
        mode: LeaseMode,
    ) -> Result<LeaseId, Refusal> {
        if !self.data.sessions.contains_key(&client) {
            return refuse(Status::StaleHandle, format!("session {client} has ended"));
        }
        let leases = self.inode(file)?.leases();
        let is_revoked = |l: &&LeaseRecord| self.data.revoking.contains_key(&l.id);
        let mut conflicts = leases.iter().filter(|l| l.excludes(client, mode));
        // Those that hold are named first.
        let conflict = conflicts.clone().find(|l| !is_revoked(l)).or_else(|| conflicts.next());
        if let Some(lease) = conflict.filter(is_revoked) {
            let detail =
                format!("its lease was revoked, and client {} has yet to stop using it", lease.client);
            return refuse(Status::HolderAway, detail);
        }
        if let Some(lease) = conflict {
            let holder = self.data.sessions.get(&lease.client).map_or("a client", |s| &s.host);
            let how = if lease.mode == LeaseMode::Write { "writing" } else { "reading" };
            return refuse(Status::FileBusy, format!("open for {how} on {holder} (client {})", lease.client));
        }
        let mine = leases.iter().find(|l| l.client == client && !is_revoked(l)).copied();
        let does = |l: &LeaseRecord| l.mode == LeaseMode::Write && !l.settled || mode == LeaseMode::Read;
        if let Some(mine) = mine.filter(does) {
            return Ok(mine.id);
        }
        let id = LeaseId(self.data.counters.next_lease);
        self.data.counters.next_lease += 1;
        let inode = self.inode_mut(file)?;
        // An upgrade replaces the weaker lease, and the new one of a client that of which it was deprived.
        let replaced: Vec<LeaseId> = inode.change_extras(|extras| {
            let replaced = extras.leases.extract_if(.., |l| l.client == client).map(|l| l.id).collect();
            extras.leases.push(LeaseRecord { id, client, mode, settled: false });
            replaced
        });
        if mode == LeaseMode::Write {
            inode.last_writer = id;
        }
        replaced.iter().for_each(|lease| {
            self.data.revoking.remove(lease);
        });
        if let Some(session) = self.data.sessions.get_mut(&client) {
            session.files.insert(file);
        }
        Ok(id)
    }

    /// Clients whose leases keep this one from opening the file.
    pub fn holders_against(
        &self,
        client: ClientId,
        file: FileId,
        mode: LeaseMode,
    ) -> impl Iterator<Item = ClientId> {
        let leases = self.data.inodes.get(file).map_or(&[][..], |i| i.leases());
        leases.iter().filter(move |l| l.excludes(client, mode)).map(|l| l.client)
    }

    /// Whether a client whose session ended may go on where it was: what it had under way would otherwise be
    /// done again on top of what others have written since.
    pub(super) fn check_reclaim(&self, file: FileId, lease: LeaseId) -> Result<(), Refusal> {
        let last = self.inode(file)?.last_writer;
        if lease != LeaseId(0) && last > lease && !on(Sabotage::ReclaimAnyway) {
            return refuse(
                Status::LeaseLost,
                format!("file {file} was opened for writing (lease {last}) since"),
            );
        }
        Ok(())
    }

    pub(super) fn release(
        &mut self,
        client: ClientId,
        file: FileId,
        lease: LeaseId,
        effects: &mut Vec<Effect>,
    ) {
        let Some(inode) = self.data.inodes.get_mut(file) else { return };
        let before = inode.leases().len();
        inode.change_extras(|extras| extras.leases.retain(|l| !(l.id == lease && l.client == client)));
        if inode.leases().len() < before {
            self.data.revoking.remove(&lease);
        }
        if inode.leases().iter().all(|l| l.client != client)
            && let Some(session) = self.data.sessions.get_mut(&client)
        {
            session.files.remove(&file);
        }
        self.drop_if_unused(file, effects);
    }

    /// Takes away all leases of a file. They keep others away until their holders have released them, their sessions have
    /// ended, or [`super::Internal::EndRevoked`] says that nobody can believe in them any more.
    pub(super) fn revoke(&mut self, file: FileId, effects: &mut Vec<Effect>) -> Result<MdsReply, Refusal> {
        let all: Vec<_> = self.inode(file)?.leases().iter().map(|l| (l.id, l.client)).collect();
        let fresh = all.iter().filter(|(lease, _)| self.data.revoking.insert(*lease, file).is_none());
        let fresh: Vec<_> = fresh.copied().collect();
        self.note_revoked(file, fresh, effects);
        let leases: Vec<LeaseId> = all.into_iter().map(|(lease, _)| lease).collect();
        Ok(self.revoke_stat(file, &leases))
    }

    /// Which of these leases of a file still keep others away.
    pub(super) fn revoke_stat(&self, file: FileId, leases: &[LeaseId]) -> MdsReply {
        let keeps = |lease: &&LeaseId| self.data.revoking.get(*lease) == Some(&file);
        match leases.iter().filter(keeps).copied().collect::<Vec<_>>() {
            none if none.is_empty() => MdsReply::Done,
            leases => MdsReply::Revoking { leases },
        }
    }

    pub(super) fn end_revoked(&mut self, leases: &[LeaseId], effects: &mut Vec<Effect>) {
        for lease in leases {
            let Some(file) = self.data.revoking.get(lease).copied() else { continue };
            let holders = self.leases_of_file(file);
            if let Some(holder) = holders.iter().find(|l| l.id == *lease) {
                self.release(holder.client, file, *lease, effects);
            }
            self.data.revoking.remove(lease);
        }
    }

    /// Revoked leases that their holders may still believe in.
    pub fn revoking(&self) -> impl Iterator<Item = LeaseId> + '_ {
        self.data.revoking.keys().copied()
    }

    pub fn session_exists(&self, client: ClientId) -> bool {
        self.data.sessions.contains_key(&client)
    }

    pub fn clients(&self) -> Vec<ClientInfo> {
        let info = |(client, s): (&ClientId, &Session)| ClientInfo {
            client: *client,
            host: s.host.clone(),
            mount_point: s.mount_point.clone(),
            leases: s.files.len() as u32,
        };
        self.data.sessions.iter().map(info).collect()
    }

    pub fn leases_of_file(&self, file: FileId) -> Vec<Lease> {
        let leases = self.data.inodes.get(file).map_or(&[][..], |i| i.leases());
        leases.iter().map(|l| Lease { id: l.id, client: l.client, mode: l.mode }).collect()
    }

    /// Recently revoked leases of a session, for KeepAlive.
    pub fn revoked_of(&self, client: ClientId) -> Vec<LeaseId> {
        self.data.small.revoked.iter().filter(|(_, c)| *c == client).map(|(l, _)| *l).collect()
    }

    /// All recently revoked leases, for CsReply::Registered.
    pub fn revoked(&self) -> Vec<LeaseId> {
        self.data.small.revoked.iter().map(|(l, _)| *l).collect()
    }
}
