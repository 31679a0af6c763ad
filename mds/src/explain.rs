//! `explain`: in plain words where a chunk or a server is, why, what is wrong and what happens next. Only words: what is
//! the case comes from [`Condition`], what will be done from [`crate::repair::Stage`].

use crate::chunk_state::{Condition, Surroundings};
use crate::repair::Stage;
use crate::state::{ChunkView, Liveness, State};
use std::net::SocketAddr;
use std::time::Duration;
use wire::mds_api::{
    ChunkCounts, ChunkState, ChunkStory, CsInfo, CsStatus, CsStory, FailureDomain, ReplicaPolicy,
    ReplicaStory,
};
use wire::{ChunkId, CsId, Role};

/// What the stories are told from.
pub struct Teller<'a> {
    pub state: &'a State,
    pub around: &'a Surroundings<'a>,
    /// How long a server is away.
    pub away: &'a dyn Fn(CsId) -> Option<Duration>,
    pub addr: &'a dyn Fn(CsId, ChunkId) -> SocketAddr,
    pub is_slow: &'a dyn Fn(CsId) -> bool,
    pub offline_after: Duration,
    /// False while too many hosts are offline.
    pub may_place: bool,
    /// Chunks that wait to be copied.
    pub waiting: u64,
}

fn domain_name(domain: FailureDomain) -> String {
    domain.to_string()
}

fn list(servers: &[CsId]) -> String {
    let names: Vec<String> = servers.iter().map(|cs| format!("CS#{cs}")).collect();
    names.join(", ")
}

/// `CS#2 is`, `CS#2, CS#3 are`.
fn are(servers: &[CsId]) -> String {
    format!("{} {}", list(servers), if servers.len() == 1 { "is" } else { "are" })
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

impl Teller<'_> {
    fn live(&self, cs: CsId) -> Liveness {
        (self.around.live)(cs)
    }

    fn status(&self, cs: CsId) -> CsStatus {
        match self.live(cs) {
            _ if self.state.cs(cs).is_none_or(|r| r.dropped) => CsStatus::Dropped,
            Liveness::Active => CsStatus::Active,
            Liveness::Inactive => CsStatus::Inactive,
            Liveness::Offline => CsStatus::Offline,
        }
    }

    fn those(&self, view: &ChunkView, role: Role, is_there: bool) -> Vec<CsId> {
        view.with_role(role).filter(|cs| (self.live(*cs) == Liveness::Active) == is_there).collect()
    }

    /// The story of a chunk; `path` is that of its file, or empty where the reader knows it.
    pub fn chunk(&self, view: &ChunkView, policy: &ReplicaPolicy, path: String) -> ChunkStory {
        let condition = Condition::of(view, policy, self.around);
        ChunkStory {
            chunk: view.chunk,
            index: view.index,
            epoch: view.epoch,
            state: condition.state,
            also: condition.also(),
            primary: view.primary(),
            replicas: view.replicas.iter().map(|(cs, role)| self.replica(view, *cs, *role)).collect(),
            why: if path.is_empty() { Vec::new() } else { self.why(view, policy, &condition, &path) },
            wrong: self.wrong(view, policy, &condition),
            next: self.next(view, policy, &condition),
            path,
        }
    }

    fn replica(&self, view: &ChunkView, cs: CsId, role: Role) -> ReplicaStory {
        let until = view.in_sync_until.iter().find(|(known, _)| *known == cs).map(|(_, epoch)| *epoch);
        let mut says = match (role, until) {
            (Role::InSync, _) if view.primary() == Some(cs) => {
                "has everything, and leads: clients read from it and write to it".to_string()
            }
            (Role::InSync, _) => "has everything".into(),
            (Role::Learner, Some(epoch)) => {
                format!("is being filled with what was written since it was in sync (epoch {epoch})")
            }
            (Role::Learner, None) => "is being filled with everything".into(),
            (Role::Stale, Some(_)) if self.state.missed_nothing(view.chunk, cs) => {
                "was left out, and has all that was ever acknowledged: writes have waited since".into()
            }
            (Role::Stale, Some(epoch)) => {
                format!("was left out after epoch {epoch}: it lacks what was written since, and is not used")
            }
            (Role::Stale, None) => "holds nothing that may be used".into(),
        };
        if self.live(cs) != Liveness::Active {
            says += &match (self.away)(cs) {
                Some(time) => format!("; its server is away for {} s", time.as_secs()),
                None => "; its server is away".into(),
            };
        } else if (self.is_slow)(cs) {
            says += "; its server was found slow and rests";
        }
        ReplicaStory {
            cs,
            addr: (self.addr)(cs, view.chunk),
            role: format!("{role:?}").to_lowercase(),
            server: self.status(cs),
            host: self.state.cs(cs).map_or_else(String::new, |r| r.host.clone()),
            says,
        }
    }

    fn why(&self, view: &ChunkView, policy: &ReplicaPolicy, c: &Condition, path: &str) -> Vec<String> {
        let mut why = vec![format!("It is chunk {} of {path}.", view.index)];
        why.push(format!(
            "Its file wishes for {}, at least {} for writes, each in another failure domain ({}), on tier {}.",
            count(policy.normal.into(), "replica"),
            policy.minimum,
            domain_name(policy.domain),
            policy.tier
        ));
        if view.is_shared {
            let paths = self.state.files_of(view.chunk).into_iter().map(|file| self.state.path_of(file));
            let (paths, most) = (paths.collect::<Vec<_>>(), 10);
            let more = if paths.len() > most { ", and more" } else { "" };
            why.push(format!(
                "{} files share it ({}{more}): whoever writes to it gets one of its own first.",
                paths.len(),
                paths[..paths.len().min(most)].join(", ")
            ));
        }
        why.push(
            "Servers are chosen by failure domain first, then by tier, then at random by free space and load."
                .into(),
        );
        if c.void {
            why.push("Nothing was ever written to it, as far as its servers have told.".into());
        }
        why
    }

    fn wrong(&self, view: &ChunkView, policy: &ReplicaPolicy, c: &Condition) -> Vec<String> {
        let mut wrong = Vec::new();
        let (away, there) = (self.those(view, Role::InSync, false), self.those(view, Role::InSync, true));
        match c.state {
            ChunkState::Offline => {
                let stale = self.those(view, Role::Stale, true);
                wrong.push(format!(
                    "None of the replicas that have everything is there ({} away): reads and writes wait.",
                    list(&away)
                ));
                if !stale.is_empty() {
                    wrong.push(format!(
                        "{} there, but may lack acknowledged writes, and must not be used alone.",
                        are(&stale)
                    ));
                }
            }
            ChunkState::Blocked => wrong.push(format!(
                "Only {} there and in sync ({}); writes need {}, and wait. Reads go on.",
                count(c.usable, "replica"),
                list(&there),
                policy.minimum
            )),
            _ if c.usable < usize::from(policy.normal) => wrong.push(format!(
                "{} of {} there and in sync; it can be read and written.",
                c.usable,
                count(policy.normal.into(), "replica")
            )),
            _ => {}
        }
        if !away.is_empty() && c.state != ChunkState::Offline {
            wrong.push(format!("{} away.", are(&away)));
        }
        if c.state == ChunkState::Urgent {
            let stale: Vec<CsId> = view.with_role(Role::Stale).collect();
            wrong.push(format!("The replica on {} differs from the others.", list(&stale)));
        }
        for (first, blocks) in self.state.gone_blocks(view.chunk) {
            wrong.push(format!(
                "{} of 4 KiB from block {first} on were on no replica any more when the chunk was copied: reading them \
                 is an error. Those written since are whole again.",
                count(blocks as usize, "block")
            ));
        }
        if c.deviation.shared > 0 {
            wrong.push(format!(
                "{} in the failure domain ({}) of another one: one failure may take both.",
                count(c.deviation.shared, "replica"),
                domain_name(policy.domain)
            ));
        }
        if c.deviation.other_tier > 0 {
            let number = count(c.deviation.other_tier, "replica");
            wrong.push(format!("{number} on another tier than {}.", policy.tier));
        }
        wrong
    }

    fn next(&self, view: &ChunkView, policy: &ReplicaPolicy, c: &Condition) -> Vec<String> {
        let mut next = Vec::new();
        let away = self.those(view, Role::InSync, false);
        let learners: Vec<CsId> = view.with_role(Role::Learner).collect();
        let lacks = c.usable < usize::from(policy.normal) || c.deviation != Default::default();
        match (self.around.stage)(view.chunk) {
            // Whatever is planned needs one of them.
            _ if c.state == ChunkState::Offline => {
                next.push(format!("Start the server of {}; nothing else can help.", list(&away)));
            }
            Stage::Copying if !learners.is_empty() => {
                let by = view.primary().map_or_else(String::new, |p| format!(" by CS#{p}"));
                next.push(format!("{} being filled{by}, and in sync when that is done.", are(&learners)));
            }
            Stage::Copying => next.push("A change of its replicas is being made now.".into()),
            Stage::Waiting => next.push(format!(
                "It waits for its turn to be copied ({} wait; the most endangered first).",
                count(self.waiting as usize, "chunk")
            )),
            Stage::WithoutPlace => next.push(
                "No server can take the replica (room, or another failure domain or tier): add a chunk server, or \
                 ask for less with set-attr."
                    .into(),
            ),
            Stage::Idle if !learners.is_empty() => next.push(format!("{} to be filled.", are(&learners))),
            Stage::Idle if lacks && !self.may_place => next.push(
                "Too many hosts are offline (mds.wd.max_offline_cs_hosts): nothing is copied to other servers until \
                 some are back or the limit is raised."
                    .into(),
            ),
            Stage::Idle if !away.is_empty() => next.push(format!(
                "{} waited for; what is away longer than {} s (mds.wd.offline_tout) is replaced by copies elsewhere.",
                are(&away),
                self.offline_after.as_secs()
            )),
            Stage::Idle if lacks => next.push("It is looked at again within seconds.".into()),
            Stage::Idle => {}
        }
        let whole = |cs: &CsId| self.state.missed_nothing(view.chunk, *cs);
        let whole: Vec<CsId> = self.those(view, Role::Stale, false).into_iter().filter(whole).collect();
        if !whole.is_empty() {
            next.push(format!(
                "{} away, with all that was ever acknowledged: blocks that nobody else can read are waited for until its \
                 server is back, or is removed for good with rm-cs -f.",
                are(&whole)
            ));
        }
        if c.overcommitted {
            next.push("The replica it can best do without is deleted.".into());
        }
        next
    }

    /// The story of a server; `states` are those of the chunks it holds replicas of, `leads` how many it leads.
    pub fn server(&self, server: CsInfo, states: ChunkCounts, leads: u64) -> CsStory {
        let cs = server.cs;
        let location = if server.location.is_empty() { "no location" } else { &server.location };
        let mut why = vec![format!("It is on host {} ({location}), on tier {}.", server.host, server.tier)];
        why.push(format!("It holds {} replicas and leads {leads} chunks.", server.replicas));
        let (mut wrong, mut next) = (Vec::new(), Vec::new());
        let away = (self.away)(cs).map_or_else(String::new, |t| format!(" for {} s", t.as_secs()));
        let tout = self.offline_after.as_secs();
        match server.status {
            CsStatus::Active => {}
            CsStatus::Inactive => {
                wrong.push(format!("Not all its shards are registered{away}."));
                next.push(format!(
                    "It is waited for; away for {tout} s (mds.wd.offline_tout) it is offline, and what it holds is \
                     copied to others."
                ));
            }
            CsStatus::Offline => {
                wrong.push(format!("It is away{away}, longer than {tout} s (mds.wd.offline_tout)."));
                next.push(
                    "What it held is copied to other servers. If it comes back first, its replicas get what they lack; \
                     if it never will, remove it with rm-cs."
                        .into(),
                );
            }
            CsStatus::Dropped => {
                why.push("It was removed from the cluster; its directory can be deleted.".into());
            }
            CsStatus::Failed => wrong.push("It has failed.".into()),
        }
        if (self.is_slow)(cs) {
            wrong.push("It was found much slower than others.".into());
            next.push(
                "It gets no replicas until its rest is over (mds.wd.slow_tout); then it is tried again."
                    .into(),
            );
        }
        if server.draining {
            next.push(format!(
                "It is being removed: {} replicas have to go elsewhere, then it is dropped ('rm-cs --cancel' ends this).",
                server.replicas
            ));
        }
        if server.scrub_damaged > 0 {
            wrong.push(format!(
                "Its scrub has found {} damaged places since it started: look at its disk.",
                server.scrub_damaged
            ));
        }
        if !self.may_place {
            next.push(
                "Too many hosts are offline (mds.wd.max_offline_cs_hosts): nothing is copied elsewhere."
                    .into(),
            );
        }
        for (number, text) in [
            (states.offline, "can't be read or written"),
            (states.blocked, "can be read, and not written"),
            (
                states.degraded + states.urgent,
                "have fewer replicas than they should, or share a failure domain",
            ),
        ] {
            if number > 0 {
                wrong.push(format!("{number} of its chunks {text}."));
            }
        }
        CsStory { server, states, why, wrong, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::CsView;
    use std::collections::BTreeMap;
    use wire::{Epoch, FileId};

    #[test]
    fn a_chunk_tells_what_is_wrong_and_what_happens_next() {
        let state = State::new();
        let view = |roles: &[Role]| ChunkView {
            chunk: ChunkId(7),
            file: FileId(2),
            index: 3,
            epoch: Epoch(4),
            replicas: (1..).map(CsId).zip(roles.iter().copied()).collect(),
            in_sync_until: vec![(CsId(2), Epoch(3))],
            min_replicas: 2,
            normal_replicas: 2,
            is_shared: false,
        };
        let policy = ReplicaPolicy { normal: 2, minimum: 2, tier: 0, domain: FailureDomain::Disk };
        let servers = BTreeMap::<CsId, CsView>::new();
        let tell = |view: &ChunkView, stage: Stage, away: &[u32]| {
            let around = Surroundings {
                servers: &servers,
                live: &|cs| if away.contains(&cs.0) { Liveness::Inactive } else { Liveness::Active },
                stage: &|_| stage,
                was_reported: &|_| true,
                has_gone: &|_| false,
            };
            let teller = Teller {
                state: &state,
                around: &around,
                away: &|cs| away.contains(&cs.0).then_some(Duration::from_secs(12)),
                addr: &|_, _| crate::cs_registry::UNKNOWN_ADDR,
                is_slow: &|_| false,
                offline_after: Duration::from_secs(300),
                may_place: true,
                waiting: 5,
            };
            teller.chunk(view, &policy, "/disk".into())
        };
        let well = tell(&view(&[Role::InSync, Role::InSync]), Stage::Idle, &[]);
        assert_eq!(well.state, ChunkState::Healthy);
        assert!(well.wrong.is_empty() && well.next.is_empty() && well.why[0].contains("chunk 3 of /disk"));

        let away = tell(&view(&[Role::InSync, Role::InSync]), Stage::Idle, &[2]);
        assert_eq!(away.state, ChunkState::Blocked);
        assert!(away.wrong[0].contains("writes need 2, and wait"), "{away:?}");
        assert!(away.next[0].contains("CS#2") && away.next[0].contains("300 s"), "{away:?}");
        assert!(away.replicas[1].says.contains("away for 12 s"), "{away:?}");

        let filled = tell(&view(&[Role::InSync, Role::Learner]), Stage::Copying, &[]);
        assert_eq!(filled.also, ["pending", "replicating", "unique"]);
        assert!(filled.next[0].contains("CS#2 is being filled by CS#1"), "{filled:?}");
        assert!(filled.replicas[1].says.contains("since it was in sync (epoch 3)"), "{filled:?}");

        let lost = tell(&view(&[Role::InSync, Role::Stale]), Stage::Idle, &[1]);
        assert_eq!(lost.state, ChunkState::Offline);
        assert!(lost.wrong[1].contains("CS#2 is there, but may lack"), "{lost:?}");
        assert!(lost.next[0].contains("Start the server of CS#1"), "{lost:?}");
    }
}
