//! Attributes of files and directories, by the names the guide gives them.

use crate::mds_api::{FailureDomain, ReplicaPolicy};

/// An attribute and what it is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attribute {
    /// Without a minimum it stays, or falls with the normal number.
    Replicas {
        normal: u8,
        minimum: Option<u8>,
    },
    Tier(u8),
    FailureDomain(FailureDomain),
    ChunkBytes(u32),
}

impl Attribute {
    /// # Errors
    /// A sentence for the administrator.
    pub fn parse(name: &str, value: &str) -> Result<Attribute, String> {
        let read = match name {
            "replicas" => Self::replicas(value),
            "tier" => match value.parse() {
                Ok(tier @ 0..=3) => Ok(Attribute::Tier(tier)),
                _ => Err("a tier from 0 to 3"),
            },
            "failure-domain" => {
                value.parse().map(Attribute::FailureDomain).map_err(|_| "disk, host, rack, row or room")
            }
            "chunk-size" => Self::chunk_size(value),
            _ => Err("attributes are replicas, tier, failure-domain and chunk-size"),
        };
        read.map_err(|why| format!("{name}={value}: {why}"))
    }

    fn replicas(value: &str) -> Result<Attribute, &'static str> {
        let unclear = "expected N or N:M";
        let (normal, minimum) = match value.split_once(':') {
            Some((normal, minimum)) => (normal, Some(minimum.parse().map_err(|_| unclear)?)),
            None => (value, None),
        };
        let normal: u8 = normal.parse().map_err(|_| unclear)?;
        if !(1..=15).contains(&normal) || minimum.is_some_and(|minimum| !(1..=normal).contains(&minimum)) {
            return Err("1 to 15 replicas, the minimum not above the normal number");
        }
        Ok(Attribute::Replicas { normal, minimum })
    }

    fn chunk_size(value: &str) -> Result<Attribute, &'static str> {
        let (digits, unit) = match value.strip_suffix(['M', 'm']) {
            Some(digits) => (digits, 1u64 << 20),
            None => (value, 1),
        };
        match digits.parse::<u64>().map(|n| n.saturating_mul(unit)) {
            Ok(bytes) if bytes.is_power_of_two() && (1 << 20..=256 << 20).contains(&bytes) => {
                Ok(Attribute::ChunkBytes(bytes as u32))
            }
            _ => Err("a power of two from 1M to 256M"),
        }
    }

    /// Of how replicas are kept; the chunk size is not part of that.
    pub fn change(&self, policy: &mut ReplicaPolicy) {
        match *self {
            Attribute::Replicas { normal, minimum } => {
                policy.normal = normal;
                policy.minimum = minimum.unwrap_or(normal.min(policy.minimum));
            }
            Attribute::Tier(tier) => policy.tier = tier,
            Attribute::FailureDomain(domain) => policy.domain = domain,
            Attribute::ChunkBytes(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_or_explained() {
        let mut policy = ReplicaPolicy { normal: 3, minimum: 2, tier: 0, domain: FailureDomain::Host };
        for (name, value) in
            [("replicas", "1"), ("tier", "3"), ("failure-domain", "rack"), ("chunk-size", "64M")]
        {
            Attribute::parse(name, value).unwrap().change(&mut policy);
        }
        let expected = ReplicaPolicy { normal: 1, minimum: 1, tier: 3, domain: FailureDomain::Rack };
        assert_eq!(policy, expected);
        assert_eq!(Attribute::parse("chunk-size", "1048576"), Ok(Attribute::ChunkBytes(1 << 20)));
        for (name, value, why) in [
            ("replicas", "0", "1 to 15"),
            ("replicas", "2:3", "not above"),
            ("replicas", "3:", "N or N:M"),
            ("replicas", "3:2:1", "N or N:M"),
            ("replicas", "-1", "N or N:M"),
            ("tier", "4", "0 to 3"),
            ("failure-domain", "planet", "room"),
            ("chunk-size", "5M", "power of two"),
            ("chunk-size", "99999999999999999999M", "power of two"),
            ("colour", "red", "attributes are"),
        ] {
            let error = Attribute::parse(name, value).unwrap_err();
            assert!(error.starts_with(&format!("{name}={value}: ")) && error.contains(why), "{error}");
        }
    }
}
