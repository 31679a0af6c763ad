//! The cluster's key and the proofs made with it. Pure computation.
//!
//! The password is never stored or sent: Argon2id turns it into a 32-byte key, kept on every node of the cluster
//! in `auth_digest.key` (mode 0600). Peers prove that they hold the key with HMAC-SHA-256 over both sides'
//! nonces and identities.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;

/// Parameters of the key derivation, public: an unauthenticated node asks for them to try a password.
#[derive(Clone, Copy, PartialEq, Eq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct PasswordSalt {
    pub salt: [u8; 16],
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
}

impl PasswordSalt {
    /// 64 MiB, 3 passes: RFC 9106's second recommended choice with a single lane.
    pub fn with_salt(salt: [u8; 16]) -> Self {
        PasswordSalt { salt, memory_kib: 64 << 10, passes: 3, lanes: 1 }
    }

    /// Refuses parameters that would let a hostile server exhaust this machine or make guessing cheap.
    pub fn check(&self) -> Result<(), String> {
        let sane = (8 << 10..=1 << 20).contains(&self.memory_kib)
            && (1..=16).contains(&self.passes)
            && (1..=16).contains(&self.lanes);
        if sane { Ok(()) } else { Err(format!("unreasonable password parameters: {self:?}")) }
    }
}

/// What a node must hold to be part of the cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey {
    pub salt: PasswordSalt,
    key: [u8; 32],
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(secret)")
    }
}

const HEADING: &str = "pstorage-auth-digest 1";

impl ClusterKey {
    pub fn from_password(password: &str, salt: PasswordSalt) -> Result<Self, String> {
        salt.check()?;
        let params = argon2::Params::new(salt.memory_kib, salt.passes, salt.lanes, Some(32))
            .map_err(|e| e.to_string())?;
        let mut key = [0u8; 32];
        argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
            .hash_password_into(password.as_bytes(), &salt.salt, &mut key)
            .map_err(|e| e.to_string())?;
        Ok(ClusterKey { salt, key })
    }

    /// The key of a cluster made without a password: everybody has it.
    pub fn open() -> Self {
        ClusterKey { salt: PasswordSalt::with_salt([0; 16]), key: [0; 32] }
    }

    pub fn is_open(&self) -> bool {
        self.key == [0; 32]
    }

    /// A key known only to one test.
    pub fn for_test(byte: u8) -> Self {
        ClusterKey { salt: PasswordSalt::with_salt([byte; 16]), key: [byte.max(1); 32] }
    }

    /// Text of `auth_digest.key`.
    pub fn to_text(&self) -> String {
        let s = &self.salt;
        format!(
            "{HEADING}\nalgorithm=argon2id\nsalt={}\nmemory_kib={}\npasses={}\nlanes={}\ndigest={}\n",
            hex(&s.salt),
            s.memory_kib,
            s.passes,
            s.lanes,
            hex(&self.key)
        )
    }

    pub fn from_text(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        if lines.next() != Some(HEADING) {
            return Err(format!("first line is not '{HEADING}'"));
        }
        let field = |name: &str| {
            text.lines()
                .find_map(|l| l.strip_prefix(name)?.strip_prefix('='))
                .ok_or_else(|| format!("no line '{name}=…'"))
        };
        let number = |name: &str| field(name)?.parse::<u32>().map_err(|e| format!("{name}: {e}"));
        let salt = PasswordSalt {
            salt: unhex(field("salt")?).ok_or("salt: not 32 hexadecimal digits")?,
            memory_kib: number("memory_kib")?,
            passes: number("passes")?,
            lanes: number("lanes")?,
        };
        Ok(ClusterKey { salt, key: unhex(field("digest")?).ok_or("digest: not 64 hexadecimal digits")? })
    }

    /// Proof of holding the key, bound to `parts` (length-prefixed, so no two lists look alike).
    pub fn prove(&self, purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
        self.mac(purpose, parts).finalize().into_bytes().into()
    }

    /// Constant-time check of a proof.
    pub fn verify(&self, purpose: &str, parts: &[&[u8]], proof: &[u8; 32]) -> bool {
        self.mac(purpose, parts).verify_slice(proof).is_ok()
    }

    fn mac(&self, purpose: &str, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.key).expect("HMAC takes any key length");
        for part in std::iter::once(&purpose.as_bytes()).chain(parts) {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.trim();
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    let mut out = [0u8; N];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_file_round_trips_and_says_what_is_wrong() {
        let key = ClusterKey::for_test(9);
        assert_eq!(ClusterKey::from_text(&key.to_text()).unwrap(), key);
        assert!(ClusterKey::from_text("junk").unwrap_err().contains("first line"));
        let cut = key.to_text().replace("digest=", "digest=zz");
        assert!(ClusterKey::from_text(&cut).unwrap_err().contains("digest"));
    }

    #[test]
    fn proofs_bind_key_purpose_and_parts() {
        let key = ClusterKey::for_test(1);
        let proof = key.prove("a", &[b"x", b"yz"]);
        assert!(key.verify("a", &[b"x", b"yz"], &proof));
        assert!(!key.verify("a", &[b"xy", b"z"], &proof));
        assert!(!key.verify("b", &[b"x", b"yz"], &proof));
        assert!(!ClusterKey::for_test(2).verify("a", &[b"x", b"yz"], &proof));
    }

    #[test]
    fn password_makes_the_key() {
        let salt = PasswordSalt { salt: [3; 16], memory_kib: 8 << 10, passes: 1, lanes: 1 };
        let right = ClusterKey::from_password("secret", salt).unwrap();
        assert_eq!(right, ClusterKey::from_password("secret", salt).unwrap());
        assert_ne!(right, ClusterKey::from_password("Secret", salt).unwrap());
    }
}
