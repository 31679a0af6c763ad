//! What records say about clusters: names in TXT strings and in the owners of SRV records, and the order of SRV records.

use crate::SERVICE;

/// Owner of the TXT records that list clusters, below a search domain.
pub const CLUSTERS: &str = "pstorage_clusters";

/// Cluster names in the strings of a TXT record: each string is a list with commas. What can't be a name is left out.
pub fn of_txt<'a>(strings: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let texts = strings.into_iter().filter_map(|s| std::str::from_utf8(s).ok());
    let words = texts.flat_map(|text| text.split(',')).map(str::trim);
    words.filter(|w| wire::check_cluster_name(w).is_ok()).map(String::from).collect()
}

/// The cluster that an SRV record is about: NAME of `_pstorage._tcp.NAME.DOMAIN`.
pub fn of_srv_owner(owner: &str, domain: &str) -> Option<String> {
    let owner = owner.trim_end_matches('.');
    let domain = domain.trim_end_matches('.');
    let name = strip_prefix(owner, SERVICE)?.strip_prefix('.')?;
    let name = if domain.is_empty() { name } else { strip_suffix(name, domain)?.strip_suffix('.')? };
    wire::parse_cluster_name(name).ok()
}

/// Owner of the SRV records of a cluster below `domain` (may be empty).
pub fn srv_owner(cluster: &str, domain: &str) -> String {
    join(&format!("{SERVICE}.{cluster}"), domain)
}

/// `name.domain`, or `name` at the top.
pub fn join(name: &str, domain: &str) -> String {
    let domain = domain.trim_end_matches('.');
    if domain.is_empty() { name.into() } else { format!("{name}.{domain}") }
}

fn strip_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

fn strip_suffix<'a>(text: &'a str, suffix: &str) -> Option<&'a str> {
    let at = text.len().checked_sub(suffix.len())?;
    text.get(at..)?.eq_ignore_ascii_case(suffix).then(|| &text[..at])
}

/// One SRV record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    /// The lowest is tried first.
    pub priority: u16,
    /// Among those of one priority, how often it comes first compared with the others.
    pub weight: u16,
    pub port: u16,
    pub host: String,
}

/// Puts servers into the order in which they are to be tried (RFC 2782): by priority, then by chance in proportion to weight.
/// `random` gives any number.
pub fn order(mut servers: Vec<Server>, mut random: impl FnMut() -> u32) -> Vec<Server> {
    // The target "." says that there is no such service here.
    servers.retain(|s| !s.host.trim_end_matches('.').is_empty() && s.port != 0);
    // Of equal chance those of weight 0 stand in front, so that they are chosen seldom.
    servers.sort_by_key(|s| (s.priority, s.weight != 0));
    let mut ordered = Vec::with_capacity(servers.len());
    while let Some(first) = servers.first() {
        let same = servers.iter().take_while(|s| s.priority == first.priority).count();
        let total: u64 = servers[..same].iter().map(|s| u64::from(s.weight)).sum();
        let mut aim = u64::from(random()) % (total + 1);
        let chosen = servers[..same].iter().position(|s| {
            let hit = aim <= u64::from(s.weight);
            aim = aim.saturating_sub(u64::from(s.weight));
            hit
        });
        ordered.push(servers.remove(chosen.unwrap_or(0)));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_guides_txt_records_are_understood() {
        let record = |strings: &[&str]| of_txt(strings.iter().map(|s| s.as_bytes()));
        assert_eq!(
            record(&["cluster1,cluster2", "cluster3,cluster4"]),
            ["cluster1", "cluster2", "cluster3", "cluster4"]
        );
        assert_eq!(record(&["cluster5"]), ["cluster5"]);
        assert_eq!(record(&["a, b ,,c d,", " e"]), ["a", "b", "e"]);
    }

    #[test]
    fn srv_owners_name_clusters() {
        let of = |owner: &str, domain: &str| of_srv_owner(owner, domain);
        assert_eq!(of("_pstorage._tcp.pcs1.pcs.test.", "pcs.test").as_deref(), Some("pcs1"));
        assert_eq!(of("_PStorage._TCP.Pcs1.PCS.test", "pcs.TEST.").as_deref(), Some("Pcs1"));
        assert_eq!(of("_pstorage._tcp.pcs1", "").as_deref(), Some("pcs1"));
        for (owner, domain) in [
            ("_pstorage._tcp.pcs1.other.test", "pcs.test"),
            ("_pstorage._tcp.a.b.pcs.test", "pcs.test"),
            ("_pstorage._tcp.pcs.test", "pcs.test"),
            ("_sip._tcp.pcs1.pcs.test", "pcs.test"),
            ("_pstorage._tcp.xpcs.test", "pcs.test"),
            ("é", "p"),
        ] {
            assert_eq!(of(owner, domain), None, "{owner} in {domain}");
        }
    }

    fn server(priority: u16, weight: u16, host: &str) -> Server {
        Server { priority, weight, port: 2510, host: host.into() }
    }

    #[test]
    fn weight_decides_how_often_a_server_comes_first() {
        let mut state = 1u32;
        let mut firsts = 0;
        for _ in 0..1000 {
            let servers = vec![server(0, 30, "heavy"), server(0, 10, "light"), server(1, 99, "later")];
            let ordered = order(servers, || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state >> 8
            });
            assert_eq!(ordered[2].host, "later");
            firsts += u32::from(ordered[0].host == "heavy");
        }
        assert!((700..800).contains(&firsts), "{firsts}");
    }

    #[test]
    fn a_server_that_says_there_is_no_service_is_left_out() {
        assert_eq!(order(vec![server(0, 0, "."), server(0, 0, "s1")], || 7).len(), 1);
    }

    proptest! {
        #[test]
        fn any_txt_gives_names_only(strings in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..6)) {
            for name in of_txt(strings.iter().map(Vec::as_slice)) {
                prop_assert!(wire::check_cluster_name(&name).is_ok());
            }
        }

        #[test]
        fn names_survive_the_txt(lists in prop::collection::vec(prop::collection::vec("[a-zA-Z0-9_-]{1,63}", 1..4), 1..4)) {
            let strings: Vec<String> = lists.iter().map(|l| l.join(", ")).collect();
            prop_assert_eq!(of_txt(strings.iter().map(String::as_bytes)), lists.concat());
        }

        #[test]
        fn any_owner_gives_a_name_or_none(owner in ".{0,80}", domain in ".{0,20}") {
            if let Some(name) = of_srv_owner(&owner, &domain) {
                prop_assert!(wire::check_cluster_name(&name).is_ok());
            }
        }

        #[test]
        fn owners_are_undone(name in "[a-zA-Z0-9_-]{1,63}", domain in "([a-z]{1,9}\\.){0,2}[a-z]{1,9}") {
            prop_assert_eq!(of_srv_owner(&srv_owner(&name, &domain), &domain), Some(name));
        }

        #[test]
        fn the_order_keeps_every_server_and_the_priorities(
            all in prop::collection::vec((0u16..4, any::<u16>(), "[a-z]{1,3}"), 0..12), seed in any::<u32>(),
        ) {
            let servers: Vec<Server> = all.iter().map(|(p, w, h)| server(*p, *w, h)).collect();
            let mut state = seed;
            let ordered = order(servers.clone(), || { state = state.wrapping_mul(747_796_405).wrapping_add(1); state });
            prop_assert!(ordered.is_sorted_by_key(|s| s.priority));
            let sorted = |mut list: Vec<Server>| { list.sort_by(|a, b| format!("{a:?}").cmp(&format!("{b:?}"))); list };
            prop_assert_eq!(sorted(ordered), sorted(servers));
        }
    }
}
