//! Client sessions and leases: one writer or many readers per file.

use super::answer::{Effect, Refusal, refuse};
use super::data::{LeaseRecord, Session};
use super::{Lease, State};
use shards::sabotage::{Sabotage, on};
use std::collections::{BTreeMap, BTreeSet};
use wire::mds_api::{ClientInfo, LeaseMode};
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
        let client = ClientId(self.data.next_client);
        self.data.next_client += 1;
        let session = Session {
            host: host.into(),
            mount_point: mount_point.into(),
            nonce,
            files: BTreeSet::new(),
            answers: BTreeMap::new(),
        };
        self.data.sessions.insert(client, session);
        client
    }

    /// Ends a session; with `revoke` its leases are revoked (it may still be writing somewhere).
    pub(super) fn end_session(&mut self, client: ClientId, revoke: bool, effects: &mut Vec<Effect>) {
        let Some(session) = self.data.sessions.remove(&client) else { return };
        for file in session.files {
            let Some(inode) = self.data.inodes.get_mut(&file) else { continue };
            let gone: Vec<LeaseId> =
                inode.leases.iter().filter(|l| l.client == client).map(|l| l.id).collect();
            inode.leases.retain(|l| l.client != client);
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
        self.data.revoked.extend(&leases);
        let surplus = self.data.revoked.len().saturating_sub(MOST_REVOKED);
        self.data.revoked.drain(..surplus);
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
        let leases = &self.inode(file)?.leases;
        let conflict = leases.iter().find(|l| l.excludes(client, mode));
        if let Some(lease) = conflict {
            let holder = self.data.sessions.get(&lease.client).map_or("a client", |s| &s.host);
            let how = if lease.mode == LeaseMode::Write { "writing" } else { "reading" };
            return refuse(Status::FileBusy, format!("open for {how} on {holder} (client {})", lease.client));
        }
        let mine = leases.iter().find(|l| l.client == client).copied();
        if let Some(mine) = mine.filter(|l| l.mode == LeaseMode::Write || mode == LeaseMode::Read) {
            return Ok(mine.id);
        }
        let id = LeaseId(self.data.next_lease);
        self.data.next_lease += 1;
        let inode = self.inode_mut(file)?;
        // An upgrade replaces the weaker lease.
        inode.leases.retain(|l| l.client != client);
        inode.leases.push(LeaseRecord { id, client, mode });
        if mode == LeaseMode::Write {
            inode.last_writer = id;
        }
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
        let leases = self.data.inodes.get(&file).map_or(&[][..], |i| &i.leases);
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
        let Some(inode) = self.data.inodes.get_mut(&file) else { return };
        inode.leases.retain(|l| !(l.id == lease && l.client == client));
        if inode.leases.iter().all(|l| l.client != client)
            && let Some(session) = self.data.sessions.get_mut(&client)
        {
            session.files.remove(&file);
        }
        self.drop_if_unused(file, effects);
    }

    /// Takes away all leases of a file.
    pub(super) fn revoke(&mut self, file: FileId, effects: &mut Vec<Effect>) -> Result<(), Refusal> {
        let leases: Vec<_> = self.inode_mut(file)?.leases.drain(..).map(|l| (l.id, l.client)).collect();
        for (_, client) in &leases {
            if let Some(session) = self.data.sessions.get_mut(client) {
                session.files.remove(&file);
            }
        }
        self.note_revoked(file, leases, effects);
        self.drop_if_unused(file, effects);
        Ok(())
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
        let leases = self.data.inodes.get(&file).map_or(&[][..], |i| &i.leases);
        leases.iter().map(|l| Lease { id: l.id, client: l.client, mode: l.mode }).collect()
    }

    /// Recently revoked leases of a session, for KeepAlive.
    pub fn revoked_of(&self, client: ClientId) -> Vec<LeaseId> {
        self.data.revoked.iter().filter(|(_, c)| *c == client).map(|(l, _)| *l).collect()
    }

    /// All recently revoked leases, for CsReply::Registered.
    pub fn revoked(&self) -> Vec<LeaseId> {
        self.data.revoked.iter().map(|(l, _)| *l).collect()
    }
}
