//! How much users can still store, and when to tell that it grows less.

use crate::placement::CsView;
use std::collections::BTreeMap;
use wire::mds_api::{FailureDomain, ReplicaPolicy};

/// Space in use is told from the first of these on, each step of the second, as a warning from the third.
const FILL_FIRST_PERCENT: u64 = 50;
const FILL_STEP_PERCENT: u64 = 10;
pub const FULL_PERCENT: u64 = 80;

/// What tells servers of one failure domain from those of others, as [`crate::placement`] does.
fn domain_of(view: &CsView, domain: FailureDomain) -> Vec<u8> {
    let up_to =
        |names: usize| view.location.split('.').take(names).collect::<Vec<_>>().join(".").into_bytes();
    match domain {
        FailureDomain::Disk => view.cs.0.to_be_bytes().to_vec(),
        FailureDomain::Host => view.host_id.to_vec(),
        FailureDomain::Rack => up_to(3),
        FailureDomain::Row => up_to(2),
        FailureDomain::Room => up_to(1),
    }
}

/// Bytes that files of `policy` can take when every server has the room given with it: each byte has its replicas in
/// different failure domains. Where there are fewer domains than replicas, placement has them share domains, never servers.
pub fn allocatable_bytes(servers: &[(&CsView, u64)], policy: &ReplicaPolicy) -> u64 {
    let rooms = |domain| {
        let mut rooms: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for (view, room) in servers {
            *rooms.entry(domain_of(view, domain)).or_default() += room;
        }
        rooms.into_values().collect::<Vec<_>>()
    };
    let replicas = usize::from(policy.normal.max(1));
    let mut by_domain = rooms(policy.domain);
    if by_domain.len() < replicas {
        by_domain = rooms(FailureDomain::Disk);
    }
    in_different(by_domain, replicas)
}

/// The most that can be stored `replicas` times, in different ones of `rooms`.
fn in_different(mut rooms: Vec<u64>, replicas: usize) -> u64 {
    rooms.sort_unstable_by(|a, b| b.cmp(a));
    let mut left = replicas.min(rooms.len()) as u64;
    let mut total: u64 = rooms.iter().sum();
    for room in rooms {
        // A room larger than its share takes one replica of everything, and is no limit to the others.
        if left == 0 || room <= total / left {
            break;
        }
        total -= room;
        left -= 1;
    }
    total.checked_div(left).unwrap_or(0)
}

/// Which steps of filling were told.
#[derive(Default)]
pub struct Filling {
    told_percent: u64,
}

impl Filling {
    /// The step to be told now. One is told again only after the space in use went well below it.
    pub fn step(&mut self, percent: u64) -> Option<u64> {
        let step = percent / FILL_STEP_PERCENT * FILL_STEP_PERCENT;
        if percent + FILL_STEP_PERCENT / 2 < self.told_percent {
            self.told_percent = step;
        }
        (step > self.told_percent && step >= FILL_FIRST_PERCENT).then(|| {
            self.told_percent = step;
            step
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wire::CsId;

    fn view(cs: u32, host: u8) -> CsView {
        CsView {
            cs: CsId(cs),
            host_id: [host; 16],
            location: format!("room.row.rack{host}"),
            tier: 0,
            free_bytes: 0,
            total_bytes: 0,
            load: 0,
            leaving: false,
        }
    }

    fn allocatable(servers: &[(u32, u8, u64)], normal: u8, domain: FailureDomain) -> u64 {
        let views: Vec<_> = servers.iter().map(|(cs, host, room)| (view(*cs, *host), *room)).collect();
        let servers: Vec<_> = views.iter().map(|(view, room)| (view, *room)).collect();
        allocatable_bytes(&servers, &ReplicaPolicy { normal, minimum: 1, tier: 0, domain })
    }

    #[test]
    fn replicas_do_not_share_a_domain_so_the_largest_does_not_help() {
        use FailureDomain::{Disk, Host, Rack, Room};
        let even = [(1, 1, 10), (2, 2, 10), (3, 3, 10)];
        assert_eq!(allocatable(&even, 3, Host), 10);
        assert_eq!(allocatable(&even, 2, Host), 15);
        assert_eq!(allocatable(&[(1, 1, 100), (2, 2, 10), (3, 3, 10)], 3, Host), 10, "not 120 / 3");
        assert_eq!(allocatable(&[(1, 1, 100), (2, 2, 10), (3, 3, 10)], 2, Host), 20);
        let two_hosts = [(1, 1, 10), (2, 1, 10), (3, 2, 10), (4, 2, 10)];
        assert_eq!(allocatable(&two_hosts, 2, Host), 20);
        assert_eq!(allocatable(&two_hosts, 3, Host), 13, "two hosts for three replicas: they share one");
        assert_eq!(allocatable(&two_hosts, 2, Rack), 20);
        assert_eq!(allocatable(&two_hosts, 4, Room), 10);
        assert_eq!(
            allocatable(&[(1, 1, 10), (2, 2, 6)], 3, Disk),
            6,
            "with fewer servers, as many as there are"
        );
        assert_eq!(allocatable(&[], 3, Host), 0);
        assert_eq!(allocatable(&[(1, 1, 10)], 1, Host), 10);
    }

    #[test]
    fn each_step_is_told_once_until_the_space_went_well_below_it() {
        let mut filling = Filling::default();
        let told: Vec<Option<u64>> =
            [0, 49, 50, 55, 60, 59, 60, 85, 79, 80, 74, 80, 20, 95].map(|p| filling.step(p)).into();
        assert_eq!(
            told,
            [
                None,
                None,
                Some(50),
                None,
                Some(60),
                None,
                None,
                Some(80),
                None,
                None,
                None,
                Some(80),
                None,
                Some(90)
            ]
        );
    }

    proptest! {
        /// Chunks of one byte, each put where most room is, fit exactly.
        #[test]
        fn as_much_fits_as_is_said(mut rooms in prop::collection::vec(0..40_u64, 1..7), replicas in 1..4_usize) {
            let said = in_different(rooms.clone(), replicas);
            let replicas = replicas.min(rooms.len());
            let mut stored = 0;
            loop {
                rooms.sort_unstable_by(|a, b| b.cmp(a));
                if rooms[replicas - 1] == 0 {
                    break;
                }
                rooms[..replicas].iter_mut().for_each(|room| *room -= 1);
                stored += 1;
            }
            prop_assert_eq!(stored, said);
        }
    }
}
