//! Choice of chunk servers for replicas: spread over failure domains, of the right tier, random by free space and load.
//!
//! Invariants:
//! - two replicas share a failure domain only while no server in another one can take it;
//! - a domain that is not shared counts for more than the tier: data on the wrong disks is slow, not lost;
//! - a replica is moved only if the set comes closer to its policy ([`Deviation`]), so moves come to an end.

use wire::CsId;
use wire::mds_api::{FailureDomain, ReplicaPolicy};

/// What the master knows about a CS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CsView {
    pub cs: CsId,
    pub host_id: [u8; 16],
    /// room.row.rack, or empty.
    pub location: String,
    pub tier: u8,
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// Requests waiting, or any measure that grows with load.
    pub load: u32,
    /// It is being removed from the cluster: all it holds must go elsewhere.
    pub leaving: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlacementError {
    #[error(
        "Failed to allocate {wanted} replicas: {available} out of {registered} chunk servers are available"
    )]
    TooFew { wanted: usize, available: usize, registered: usize },
}

/// How far a set of replicas is from its policy; none is the smallest. What comes first weighs more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Deviation {
    /// Replicas in the failure domain of another one, beyond the first of each domain.
    pub shared: usize,
    /// Replicas on servers that are being removed.
    pub leaving: usize,
    /// Replicas on servers of another tier.
    pub other_tier: usize,
}

impl Deviation {
    pub fn of(set: &[&CsView], policy: &ReplicaPolicy) -> Deviation {
        let repeats = |at: usize| set[..at].iter().any(|other| are_together(other, set[at], policy.domain));
        Deviation {
            shared: (0..set.len()).filter(|&at| repeats(at)).count(),
            leaving: set.iter().filter(|v| v.leaving).count(),
            other_tier: set.iter().filter(|v| v.tier != policy.tier).count(),
        }
    }

    /// Whether the attributes of the file are not met, whatever becomes of servers that leave.
    pub fn breaks_policy(&self) -> bool {
        self.shared > 0 || self.other_tier > 0
    }
}

/// Whether two servers share a failure domain. Servers whose location nobody gave are taken to stand together.
fn are_together(a: &CsView, b: &CsView, domain: FailureDomain) -> bool {
    let up_to = |names: usize| a.location.split('.').take(names).eq(b.location.split('.').take(names));
    match domain {
        FailureDomain::Disk => a.cs == b.cs,
        FailureDomain::Host => a.host_id == b.host_id,
        FailureDomain::Rack => up_to(3),
        FailureDomain::Row => up_to(2),
        FailureDomain::Room => up_to(1),
    }
}

/// How many failure domains the servers are in.
pub fn domains(servers: &[CsView], domain: FailureDomain) -> usize {
    let first = |at: &usize| servers[..*at].iter().all(|other| !are_together(other, &servers[*at], domain));
    (0..servers.len()).filter(first).count()
}

/// How bad a place beside `taken` is: the neighbours in the domain of the policy, the tier, then the neighbours in the
/// smaller domains (where a row must be shared, it need not be a host).
fn rank(view: &CsView, policy: &ReplicaPolicy, taken: &[&CsView]) -> (usize, bool, [usize; 3]) {
    let neighbours = |domain| taken.iter().filter(|t| are_together(t, view, domain)).count();
    let smaller = [FailureDomain::Row, FailureDomain::Rack, FailureDomain::Host]
        .map(|domain| if domain < policy.domain { neighbours(domain) } else { 0 });
    (neighbours(policy.domain), view.tier != policy.tier, smaller)
}

/// Chooses up to `count` servers and at least `least`, beside `taken` (existing replicas, not chosen again).
/// `registered` is only for the message.
pub fn choose(
    candidates: &[&CsView],
    policy: &ReplicaPolicy,
    count: usize,
    least: usize,
    taken: &[&CsView],
    registered: usize,
    random: &mut dyn FnMut() -> u64,
) -> Result<Vec<CsId>, PlacementError> {
    let free = |v: &&CsView| taken.iter().all(|t| t.cs != v.cs);
    let mut pool: Vec<&CsView> = candidates.iter().copied().filter(free).collect();
    if pool.len() < least || pool.is_empty() {
        return Err(PlacementError::TooFew { wanted: count, available: pool.len(), registered });
    }
    let mut taken = taken.to_vec();
    let mut chosen = Vec::new();
    while chosen.len() < count && !pool.is_empty() {
        let ranks: Vec<_> = pool.iter().map(|v| rank(v, policy, &taken)).collect();
        let best = ranks.iter().min().expect("the pool is not empty");
        let among: Vec<usize> = (0..pool.len()).filter(|&at| ranks[at] == *best).collect();
        let picked = pool.swap_remove(pick(&pool, &among, random));
        taken.push(picked);
        chosen.push(picked.cs);
    }
    Ok(chosen)
}

/// One of the candidates, by free space and little load.
fn pick(pool: &[&CsView], among: &[usize], random: &mut dyn FnMut() -> u64) -> usize {
    let weight = |v: &CsView| (v.free_bytes >> 20).max(1) as u128 * 64 / (64 + u128::from(v.load));
    let weights: Vec<u128> = among.iter().map(|&i| weight(pool[i]).max(1)).collect();
    let mut at = u128::from(random()) % weights.iter().sum::<u128>();
    for (&i, w) in among.iter().zip(&weights) {
        if at < *w {
            return i;
        }
        at -= w;
    }
    among[0]
}

/// The replica whose move brings a set closest to its policy, and where to: (from, to). None if no move helps.
pub fn improve(
    set: &[&CsView],
    candidates: &[&CsView],
    policy: &ReplicaPolicy,
    random: &mut dyn FnMut() -> u64,
) -> Option<(CsId, CsId)> {
    let mut best = (Deviation::of(set, policy), None);
    if best.0 == Deviation::default() {
        return None;
    }
    let elsewhere: Vec<&CsView> =
        candidates.iter().copied().filter(|c| set.iter().all(|v| v.cs != c.cs)).collect();
    for leaver in 0..set.len() {
        let mut moved = without(set, leaver);
        let Ok(chosen) = choose(&elsewhere, policy, 1, 1, &moved, 0, random) else { return None };
        moved.extend(elsewhere.iter().find(|c| c.cs == chosen[0]));
        let deviation = Deviation::of(&moved, policy);
        if deviation < best.0 {
            best = (deviation, Some((set[leaver].cs, chosen[0])));
        }
    }
    best.1
}

/// The replica a set can best do without: the policy decides, then free space. The first (the primary) stays if it may.
pub fn surplus(set: &[&CsView], policy: &ReplicaPolicy) -> Option<CsId> {
    let fill = |v: &CsView| 1000 - v.free_bytes.min(v.total_bytes) * 1000 / v.total_bytes.max(1);
    let worth_keeping =
        |&at: &usize| (Deviation::of(&without(set, at), policy), at == 0, u64::MAX - fill(set[at]));
    (0..set.len()).min_by_key(worth_keeping).map(|at| set[at].cs)
}

fn without<'a>(set: &[&'a CsView], at: usize) -> Vec<&'a CsView> {
    let mut rest = set.to_vec();
    rest.remove(at);
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn view(cs: u32, host: u8, tier: u8, free_gb: u64) -> CsView {
        let (free_bytes, total_bytes) = (free_gb << 30, 100 << 30);
        let location = String::new();
        CsView {
            cs: CsId(cs),
            host_id: [host; 16],
            location,
            tier,
            free_bytes,
            total_bytes,
            load: 0,
            leaving: false,
        }
    }

    fn at(location: &str, view: CsView) -> CsView {
        CsView { location: location.into(), ..view }
    }

    const POLICY: ReplicaPolicy =
        ReplicaPolicy { normal: 3, minimum: 2, tier: 0, domain: FailureDomain::Host };

    fn random() -> impl FnMut() -> u64 {
        seeded(1)
    }

    fn seeded(mut x: u64) -> impl FnMut() -> u64 {
        move || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            x >> 7
        }
    }

    fn views<'a>(all: &'a [CsView], of: &[CsId]) -> Vec<&'a CsView> {
        of.iter().map(|cs| all.iter().find(|v| v.cs == *cs).unwrap()).collect()
    }

    fn deviation(all: &[CsView], of: &[CsId], policy: &ReplicaPolicy) -> Deviation {
        Deviation::of(&views(all, of), policy)
    }

    fn pick_some(
        all: &[CsView],
        policy: &ReplicaPolicy,
        count: usize,
        least: usize,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<Vec<CsId>, PlacementError> {
        choose(&all.iter().collect::<Vec<_>>(), policy, count, least, &[], 4, random)
    }

    #[test]
    fn hosts_are_distinct_while_there_are_enough() {
        let all: Vec<CsView> = (0..9).map(|i| view(i, (i / 3) as u8, 0, 50)).collect();
        let mut r = random();
        for _ in 0..200 {
            let chosen = pick_some(&all, &POLICY, 3, 3, &mut r).unwrap();
            let hosts: BTreeSet<u32> = chosen.iter().map(|c| c.0 / 3).collect();
            assert_eq!((hosts.len(), deviation(&all, &chosen, &POLICY)), (3, Deviation::default()));
        }
        let one_host: Vec<CsView> = (0..3).map(|i| view(i, 1, 0, 50)).collect();
        let chosen = pick_some(&one_host, &POLICY, 3, 3, &mut r).unwrap();
        assert_eq!(deviation(&one_host, &chosen, &POLICY), Deviation { shared: 2, ..Deviation::default() });
    }

    #[test]
    fn a_shared_rack_is_shared_by_different_hosts() {
        let policy = ReplicaPolicy { domain: FailureDomain::Rack, ..POLICY };
        // Two racks; in the first, hosts with many disks.
        let mut all: Vec<CsView> = (0..12).map(|i| at("a.1.r1", view(i, (i / 4) as u8, 0, 50))).collect();
        all.push(at("a.1.r2", view(12, 9, 0, 50)));
        let mut r = random();
        for _ in 0..200 {
            let chosen = pick_some(&all, &policy, 3, 3, &mut r).unwrap();
            let hosts: BTreeSet<[u8; 16]> = views(&all, &chosen).iter().map(|v| v.host_id).collect();
            assert_eq!((hosts.len(), deviation(&all, &chosen, &policy).shared), (3, 1));
        }
    }

    #[test]
    fn domains_are_paths_and_unknown_places_are_one() {
        let (a, b) = (at("a.1.r1", view(1, 1, 0, 5)), at("b.1.r1", view(2, 2, 0, 5)));
        for domain in [FailureDomain::Rack, FailureDomain::Row, FailureDomain::Room] {
            assert!(!are_together(&a, &b, domain), "{domain:?}");
            assert!(are_together(&view(1, 1, 0, 5), &view(2, 2, 0, 5), domain), "{domain:?}");
        }
        let c = at("a.1.r2", view(3, 1, 0, 5));
        assert!(are_together(&a, &c, FailureDomain::Row) && !are_together(&a, &c, FailureDomain::Rack));
    }

    #[test]
    fn too_few_are_told_and_other_tiers_are_better_than_none() {
        let two = [view(1, 1, 1, 5), view(2, 2, 1, 5)];
        let mut r = random();
        let error = pick_some(&two, &POLICY, 3, 3, &mut r).unwrap_err().to_string();
        assert_eq!(error, "Failed to allocate 3 replicas: 2 out of 4 chunk servers are available");
        let chosen = pick_some(&two, &POLICY, 3, 2, &mut r).unwrap();
        assert_eq!(deviation(&two, &chosen, &POLICY).other_tier, 2);
        // The tier asked for has one host only: the second replica stands elsewhere rather than beside the first.
        let mixed = [view(1, 1, 0, 5), view(2, 1, 0, 5), view(3, 2, 1, 5)];
        let chosen = pick_some(&mixed, &POLICY, 2, 2, &mut r).unwrap();
        assert_eq!(deviation(&mixed, &chosen, &POLICY), Deviation { other_tier: 1, ..Deviation::default() });
    }

    #[test]
    fn space_weighs() {
        let two = [view(1, 1, 0, 90), view(2, 2, 0, 10)];
        let mut r = random();
        let first =
            (0..1000).filter(|_| pick_some(&two, &POLICY, 1, 1, &mut r).unwrap()[0] == CsId(1)).count();
        assert!((800..980).contains(&first), "{first}");
    }

    #[test]
    fn load_weighs() {
        let two = [CsView { load: 64 * 9, ..view(1, 1, 0, 50) }, view(2, 2, 0, 50)];
        let mut r = random();
        let first =
            (0..1000).filter(|_| pick_some(&two, &POLICY, 1, 1, &mut r).unwrap()[0] == CsId(1)).count();
        assert!((50..150).contains(&first), "{first}");
    }

    #[test]
    fn the_surplus_replica_is_the_one_that_breaks_the_policy() {
        let all = [view(1, 1, 0, 50), view(2, 2, 0, 10), view(3, 3, 0, 50), view(4, 1, 0, 90)];
        let of = |ids: &[u32]| {
            let ids: Vec<CsId> = ids.iter().map(|n| CsId(*n)).collect();
            surplus(&views(&all, &ids), &POLICY)
        };
        assert_eq!(of(&[1, 2, 3, 4]), Some(CsId(4)), "beside the primary");
        assert_eq!(of(&[3, 1, 4]), Some(CsId(1)), "of two on one host the fuller one");
        assert_eq!(of(&[2, 1, 3]), Some(CsId(1)), "the primary stays, though it is fuller");
        let tiers = ReplicaPolicy { tier: 1, ..POLICY };
        let all = [view(1, 1, 0, 50), view(2, 2, 1, 50), view(3, 3, 1, 50)];
        assert_eq!(
            surplus(&all.iter().collect::<Vec<_>>(), &tiers),
            Some(CsId(1)),
            "the primary, if it must"
        );
    }

    #[test]
    fn a_leaving_server_is_left_but_not_for_a_shared_domain() {
        let mut all = [view(1, 1, 0, 50), view(2, 2, 0, 50), view(3, 3, 0, 50), view(4, 1, 0, 90)];
        all[2].leaving = true;
        let set: Vec<CsId> = [1, 2, 3].map(CsId).to_vec();
        let mut r = random();
        // The only other server stands on the host of the first.
        assert_eq!(improve(&views(&all, &set), &[&all[3]], &POLICY, &mut r), None);
        let new = view(5, 5, 1, 50);
        let to = improve(&views(&all, &set), &[&all[3], &new], &POLICY, &mut r);
        assert_eq!(to, Some((CsId(3), CsId(5))), "another tier is less of an evil");
        assert_eq!(
            surplus(&all[..3].iter().rev().collect::<Vec<_>>(), &POLICY),
            Some(CsId(3)),
            "though it leads"
        );
    }

    fn any_cluster() -> impl Strategy<Value = Vec<CsView>> {
        let server = (0u8..6, 0u8..3, 0u8..2, 0u8..3, 0u8..2, 1u64..100);
        proptest::collection::vec(server, 1..24).prop_map(|servers| {
            let views = servers.into_iter().enumerate().map(|(n, (host, rack, row, room, tier, free))| {
                at(&format!("room{room}.row{row}.rack{rack}"), view(n as u32, host, tier, free))
            });
            views.collect()
        })
    }

    fn any_policy() -> impl Strategy<Value = ReplicaPolicy> {
        use FailureDomain::*;
        let domain = proptest::sample::select(vec![Disk, Host, Rack, Row, Room]);
        (1u8..6, 0u8..2, domain).prop_map(|(normal, tier, domain)| ReplicaPolicy {
            normal,
            minimum: 1,
            tier,
            domain,
        })
    }

    proptest! {
        #[test]
        fn no_domain_is_shared_while_another_choice_exists(
            all in any_cluster(), policy in any_policy(), seed in any::<u64>()
        ) {
            let chosen = pick_some(&all, &policy, policy.normal.into(), 1, &mut seeded(seed)).unwrap();
            let distinct: BTreeSet<CsId> = chosen.iter().copied().collect();
            prop_assert_eq!(distinct.len(), chosen.len());
            prop_assert_eq!(chosen.len(), all.len().min(policy.normal.into()));
            let mut domains: Vec<&CsView> = Vec::new();
            for v in &all {
                if domains.iter().all(|d| !are_together(d, v, policy.domain)) {
                    domains.push(v);
                }
            }
            let shared = deviation(&all, &chosen, &policy).shared;
            prop_assert_eq!(shared, chosen.len() - chosen.len().min(domains.len()));
        }

        /// From any set, moves come to an end within a few steps, where no other set of servers shares less.
        #[test]
        fn moves_mend_every_set_and_stop(
            all in any_cluster(), policy in any_policy(), seed in any::<u64>()
        ) {
            let mut r = seeded(seed);
            let mut set: Vec<CsId> = all.iter().map(|v| v.cs).collect();
            while set.len() > usize::from(policy.normal) {
                set.remove((r() % set.len() as u64) as usize);
            }
            let ideal = pick_some(&all, &policy, set.len(), 1, &mut r).unwrap();
            let mut moves = 0;
            while let Some((from, to)) = improve(&views(&all, &set), &all.iter().collect::<Vec<_>>(), &policy, &mut r) {
                let before = deviation(&all, &set, &policy);
                prop_assert!(set.contains(&from) && !set.contains(&to));
                set.retain(|cs| *cs != from);
                set.push(to);
                prop_assert!(deviation(&all, &set, &policy) < before);
                moves += 1;
                prop_assert!(moves <= 2 * set.len(), "no end");
            }
            let shared = deviation(&all, &set, &policy).shared;
            prop_assert_eq!(shared, deviation(&all, &ideal, &policy).shared);
        }

        /// A replica more than needed leaves without harm to the policy, if that is possible.
        #[test]
        fn the_surplus_leaves_the_best_set(all in any_cluster(), policy in any_policy()) {
            let set: Vec<&CsView> = all.iter().take(6).collect();
            let victim = surplus(&set, &policy).unwrap();
            let rest: Vec<&CsView> = set.iter().copied().filter(|v| v.cs != victim).collect();
            for at in 0..set.len() {
                prop_assert!(Deviation::of(&rest, &policy) <= Deviation::of(&without(&set, at), &policy));
            }
        }
    }
}
