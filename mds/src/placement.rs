//! Choice of chunk servers for new replicas: random, weighted by free space and load, in distinct failure domains.

use std::collections::BTreeSet;
use wire::CsId;
use wire::mds_api::{FailureDomain, ReplicaPolicy};

/// What the master knows about a CS that may take replicas (active, not dropped, above its space margins).
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
}

/// The choice, and what is not as wished.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen {
    /// Distinct; between `least` and `count` of them.
    pub cs: Vec<CsId>,
    /// No server of the tier asked for was there; others were taken.
    pub other_tier: bool,
    /// Some share a failure domain, for lack of others.
    pub shared_domain: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlacementError {
    #[error(
        "Failed to allocate {wanted} replicas: {available} out of {registered} chunk servers are available"
    )]
    TooFew { wanted: usize, available: usize, registered: usize },
}

/// The failure domain of a CS, as text that is equal within one.
fn domain_of(view: &CsView, domain: FailureDomain) -> String {
    let host = || view.host_id.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mut parts = view.location.split('.');
    let (room, row, rack) =
        (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    match domain {
        FailureDomain::Disk => view.cs.to_string(),
        FailureDomain::Host => host(),
        FailureDomain::Rack => format!("{room}.{row}.{rack}"),
        FailureDomain::Row => format!("{room}.{row}"),
        FailureDomain::Room => room.to_string(),
    }
}

/// Chooses up to `count` servers and at least `least`; `exclude` (existing replicas) are not taken and their failure
/// domains are avoided. `registered` is only for the message.
pub fn choose(
    candidates: &[CsView],
    policy: &ReplicaPolicy,
    count: usize,
    least: usize,
    exclude: &[CsView],
    registered: usize,
    random: &mut dyn FnMut() -> u64,
) -> Result<Chosen, PlacementError> {
    let free = |v: &&CsView| exclude.iter().all(|e| e.cs != v.cs);
    let mut pool: Vec<&CsView> = candidates.iter().filter(free).filter(|v| v.tier == policy.tier).collect();
    let other_tier = pool.is_empty();
    if other_tier {
        pool = candidates.iter().filter(free).collect();
    }
    if pool.len() < least || pool.is_empty() {
        return Err(PlacementError::TooFew { wanted: count, available: pool.len(), registered });
    }
    let mut used: BTreeSet<String> = exclude.iter().map(|e| domain_of(e, policy.domain)).collect();
    let mut chosen = Chosen { cs: Vec::new(), other_tier, shared_domain: false };
    while chosen.cs.len() < count && !pool.is_empty() {
        let fresh: Vec<usize> =
            (0..pool.len()).filter(|&i| !used.contains(&domain_of(pool[i], policy.domain))).collect();
        chosen.shared_domain |= fresh.is_empty();
        let among = if fresh.is_empty() { (0..pool.len()).collect() } else { fresh };
        let picked = pool.remove(pick(&pool, &among, random));
        used.insert(domain_of(picked, policy.domain));
        chosen.cs.push(picked.cs);
    }
    Ok(chosen)
}

/// One of the candidates, by free gigabytes and little load.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn view(cs: u32, host: u8, tier: u8, free_gb: u64) -> CsView {
        let (free_bytes, total_bytes) = (free_gb << 30, 100 << 30);
        CsView {
            cs: CsId(cs),
            host_id: [host; 16],
            location: String::new(),
            tier,
            free_bytes,
            total_bytes,
            load: 0,
        }
    }

    const POLICY: ReplicaPolicy =
        ReplicaPolicy { normal: 3, minimum: 2, tier: 0, domain: FailureDomain::Host };

    fn random() -> impl FnMut() -> u64 {
        let mut x = 1u64;
        move || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            x >> 7
        }
    }

    #[test]
    fn hosts_are_distinct_while_there_are_enough() {
        let all: Vec<CsView> = (0..9).map(|i| view(i, (i / 3) as u8, 0, 50)).collect();
        let mut r = random();
        for _ in 0..200 {
            let chosen = choose(&all, &POLICY, 3, 3, &[], 9, &mut r).unwrap();
            let hosts: BTreeSet<u32> = chosen.cs.iter().map(|c| c.0 / 3).collect();
            assert_eq!((hosts.len(), chosen.shared_domain), (3, false));
        }
        let one_host: Vec<CsView> = (0..3).map(|i| view(i, 1, 0, 50)).collect();
        let chosen = choose(&one_host, &POLICY, 3, 3, &[], 3, &mut r).unwrap();
        assert_eq!((chosen.cs.len(), chosen.shared_domain), (3, true));
    }

    #[test]
    fn too_few_and_other_tiers_are_told() {
        let two = [view(1, 1, 1, 5), view(2, 2, 1, 5)];
        let mut r = random();
        let error = choose(&two, &POLICY, 3, 3, &[], 4, &mut r).unwrap_err().to_string();
        assert_eq!(error, "Failed to allocate 3 replicas: 2 out of 4 chunk servers are available");
        assert!(choose(&two, &POLICY, 3, 2, &[], 4, &mut r).unwrap().other_tier);
    }

    #[test]
    fn space_weighs() {
        let two = [view(1, 1, 0, 90), view(2, 2, 0, 10)];
        let mut r = random();
        let first = (0..1000)
            .filter(|_| choose(&two, &POLICY, 1, 1, &[], 2, &mut r).unwrap().cs[0] == CsId(1))
            .count();
        assert!((800..980).contains(&first), "{first}");
    }
}
