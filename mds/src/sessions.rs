//! Sessions of clients: who is alive, as the master knows it.
//!
//! Who has no connection is away: others need not be told that its files are in use, they may wait for its end.
//!
//! The sessions themselves stand in the replicated state; this is only when each was last heard of, by the master's
//! monotonic clock. A new master waits a full timeout before it ends anybody's session: no server's clock is compared
//! with another's.
//!
//! A client counts its time from *sending* a KeepAlive that was answered, and the answer is given only after the quorum
//! has confirmed the master (a read), so a client never believes itself alive longer than the master does.

use shards::{ConnId, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;
use wire::ClientId;

struct Alive {
    heard: Timestamp,
    /// Where it was heard last, while that connection stands.
    conn: Option<ConnId>,
    /// Its end was proposed already.
    ending: bool,
}

#[derive(Default)]
pub struct Sessions {
    alive: BTreeMap<ClientId, Alive>,
}

impl Sessions {
    /// As a new master: everybody gets a full timeout.
    pub fn new(clients: impl Iterator<Item = ClientId>, now: Timestamp) -> Sessions {
        Sessions { alive: clients.map(|c| (c, Alive { heard: now, conn: None, ending: false })).collect() }
    }

    pub fn opened(&mut self, client: ClientId, conn: Option<ConnId>, now: Timestamp) {
        self.alive.insert(client, Alive { heard: now, conn, ending: false });
    }

    pub fn heard(&mut self, client: ClientId, conn: ConnId, now: Timestamp) {
        if let Some(alive) = self.alive.get_mut(&client).filter(|a| !a.ending) {
            alive.heard = now;
            alive.conn = Some(conn);
        }
    }

    pub fn disconnected(&mut self, conn: ConnId) {
        self.alive.values_mut().filter(|a| a.conn == Some(conn)).for_each(|a| a.conn = None);
    }

    /// Where a client is reached. (What it called itself when it connected was before it had a session.)
    pub fn conn_of(&self, client: ClientId) -> Option<ConnId> {
        self.alive.get(&client).and_then(|a| a.conn)
    }

    /// Whether nothing connects this client with this server now.
    pub fn is_away(&self, client: ClientId) -> bool {
        self.conn_of(client).is_none()
    }

    pub fn ended(&mut self, client: ClientId) {
        self.alive.remove(&client);
    }

    /// Sessions silent for longer than `timeout`, each named once.
    pub fn take_expired(&mut self, now: Timestamp, timeout: Duration) -> Vec<ClientId> {
        let mut expired = Vec::new();
        for (client, alive) in &mut self.alive {
            if !alive.ending && now.since(alive.heard) > timeout {
                alive.ending = true;
                expired.push(*client);
            }
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_session_expires_once_and_not_before_its_time() {
        let at = |s: u64| Timestamp(s * 1_000_000_000);
        let timeout = Duration::from_secs(10);
        let mut s = Sessions::new([ClientId(1), ClientId(2)].into_iter(), at(100));
        s.heard(ClientId(2), ConnId(5), at(109));
        assert!(s.take_expired(at(110), timeout).is_empty());
        assert_eq!(s.take_expired(at(111), timeout), [ClientId(1)]);
        assert!(s.take_expired(at(112), timeout).is_empty());
        s.ended(ClientId(1));
        s.opened(ClientId(3), None, at(112));
        assert_eq!(s.take_expired(at(120), timeout), [ClientId(2)]);
    }

    #[test]
    fn who_has_no_connection_is_away() {
        let now = Timestamp(1);
        let mut s = Sessions::new([ClientId(1)].into_iter(), now);
        assert!(s.is_away(ClientId(1)), "a new master has not heard of it");
        s.heard(ClientId(1), ConnId(5), now);
        s.heard(ClientId(1), ConnId(6), now);
        s.disconnected(ConnId(5));
        assert!(!s.is_away(ClientId(1)), "it is on another connection by now");
        s.disconnected(ConnId(6));
        assert!(s.is_away(ClientId(1)));
        assert!(s.is_away(ClientId(9)), "ended");
    }
}
