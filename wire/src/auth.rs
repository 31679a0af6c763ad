//! Who belongs to a cluster: certificates of nodes, and the password that gets a node one. Pure computation.
//!
//! A cluster with a password has an [`Authority`], an Ed25519 key that lives in the replicated state of the metadata
//! servers. Each node has a key of its own, made on the node and never sent, and a [`Certificate`] by which the authority
//! says that the node belongs to the cluster. Both stand in the node's `auth_digest.key` (mode 0600). Peers prove who they
//! are by signatures ([`Credentials::prove`]); a node that is taken out of the cluster is refused by its number.
//!
//! The password is only needed to get a certificate ([`crate::join`]). Argon2id turns it into a [`PasswordDigest`], of which
//! the metadata service keeps a copy; the password itself is neither stored nor sent.

use crate::NodeId;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rkyv::{Archive, Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Name of the file with a node's key, below `ETC/clusters/NAME`.
pub const KEY_FILE: &str = "auth_digest.key";

/// Parameters of the password's digest, public: a node that wants a certificate asks for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
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

/// What Argon2id makes of the password. Whoever has it can get a certificate, like with the password itself.
#[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PasswordDigest {
    pub salt: PasswordSalt,
    pub(crate) digest: [u8; 32],
}

impl PasswordDigest {
    /// Takes about a tenth of a second and the memory that `salt` names.
    pub fn new(password: &str, salt: PasswordSalt) -> Result<Self, String> {
        salt.check()?;
        let params = argon2::Params::new(salt.memory_kib, salt.passes, salt.lanes, Some(32))
            .map_err(|e| e.to_string())?;
        let mut digest = [0u8; 32];
        argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
            .hash_password_into(password.as_bytes(), &salt.salt, &mut digest)
            .map_err(|e| e.to_string())?;
        Ok(PasswordDigest { salt, digest })
    }
}

impl fmt::Debug for PasswordDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordDigest(secret)")
    }
}

/// The key that certificates of a cluster are signed with.
#[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Authority {
    secret: [u8; 32],
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority(secret)")
    }
}

impl Authority {
    /// From 32 random bytes.
    pub fn new(secret: [u8; 32]) -> Authority {
        Authority { secret }
    }

    /// From an Ed25519 key as OpenSSL writes it (PKCS#8, PEM): `openssl genpkey -algorithm ed25519`.
    pub fn from_pem(text: &str) -> Result<Authority, String> {
        let key = SigningKey::from_pkcs8_pem(text).map_err(|e| {
            format!("not an Ed25519 key in PEM ('openssl genpkey -algorithm ed25519' makes one): {e}")
        })?;
        Ok(Authority { secret: key.to_bytes() })
    }

    /// What everybody may know of it.
    pub fn public_key(&self) -> [u8; 32] {
        public_key(&self.secret)
    }

    /// Says that a node belongs to the cluster. The same arguments always give the same certificate.
    pub fn certify(&self, cluster: &str, node: NodeId, name: &str, public_key: [u8; 32]) -> Certificate {
        let signed = certified(cluster, node, name, &public_key);
        let signature = sign(&self.secret, &signed);
        Certificate { node, name: name.into(), public_key, signature }
    }
}

/// The public half of a secret key.
pub fn public_key(secret: &[u8; 32]) -> [u8; 32] {
    SigningKey::from_bytes(secret).verifying_key().to_bytes()
}

/// That a node belongs to a cluster, signed by its authority.
#[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Certificate {
    /// Never given twice.
    pub node: NodeId,
    /// The host's name when it joined. For people only.
    pub name: String,
    pub public_key: [u8; 32],
    pub signature: [u8; 64],
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate(node {}, {})", self.node, self.name)
    }
}

/// Everything that a new cluster with a password begins with. The first metadata servers enter it into the state.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Foundation {
    pub cluster: String,
    pub authority: Authority,
    pub password: PasswordDigest,
    /// The node where the cluster was made.
    pub founder: Certificate,
}

/// What a node proves itself with.
#[derive(Clone, Debug, Default)]
pub enum Credentials {
    /// In a cluster without a password: nothing.
    #[default]
    Open,
    Node(Arc<NodeKey>),
}

/// A node's key and certificate.
#[derive(PartialEq, Eq)]
pub struct NodeKey {
    cluster: String,
    authority: [u8; 32],
    certificate: Certificate,
    secret: SigningKey,
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey(secret, {:?})", self.certificate)
    }
}

/// A peer's word on who it is: its certificate, and a signature that only its key can make.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Proof {
    pub certificate: Certificate,
    pub signature: [u8; 64],
}

/// Why a peer's proof is not one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotBelieved {
    #[error("this side is not authenticated in the cluster, which has a password")]
    WeAreStrangers,
    #[error("the other side is not authenticated in the cluster")]
    Stranger,
    #[error("the other side's certificate is not of this cluster")]
    OtherAuthority,
    #[error(
        "the other side does not hold the key of the certificate it shows, or somebody stands between the two"
    )]
    Forged,
}

const HEADING: &str = "pstorage-node-key 1";

impl Credentials {
    /// `secret`: 32 random bytes made on this node, whose public half `certificate` names.
    pub fn node(cluster: &str, authority: [u8; 32], certificate: Certificate, secret: [u8; 32]) -> Self {
        let secret = SigningKey::from_bytes(&secret);
        Credentials::Node(Arc::new(NodeKey { cluster: cluster.into(), authority, certificate, secret }))
    }

    /// Credentials of a node of a cluster "pcs1" that exists in one test only. Another `cluster` is another authority.
    pub fn for_test(cluster: u8, node: u32) -> Self {
        let authority = Authority::new([cluster.max(1); 32]);
        let mut secret = [cluster; 32];
        secret[..4].copy_from_slice(&node.to_le_bytes());
        let certificate = authority.certify("pcs1", NodeId(node), "test", public_key(&secret));
        Credentials::node("pcs1", authority.public_key(), certificate, secret)
    }

    pub fn is_open(&self) -> bool {
        matches!(self, Credentials::Open)
    }

    /// The node of this cluster that these are of.
    pub fn node_id(&self) -> Option<NodeId> {
        match self {
            Credentials::Open => None,
            Credentials::Node(key) => Some(key.certificate.node),
        }
    }

    /// Those of this node, from `etc/clusters/NAME/auth_digest.key`. Without the file the cluster has no password.
    pub fn load(etc: &Path, cluster: &str) -> Result<Self, String> {
        let path = etc.join("clusters").join(cluster).join(KEY_FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::from_text(&text).map_err(|e| format!("{}: {e}", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Credentials::Open),
            Err(e) => Err(format!("reading {}: {e}", path.display())),
        }
    }

    /// Text of `auth_digest.key`; empty without a password.
    pub fn to_text(&self) -> String {
        let Credentials::Node(key) = self else { return String::new() };
        let c = &key.certificate;
        format!(
            "{HEADING}\ncluster={}\nauthority={}\nnode={}\nname={}\nsignature={}\nsecret={}\n",
            key.cluster,
            hex(&key.authority),
            c.node,
            c.name,
            hex(&c.signature),
            hex(&key.secret.to_bytes())
        )
    }

    pub fn from_text(text: &str) -> Result<Self, String> {
        if text.lines().next() != Some(HEADING) {
            return Err(format!("the first line is not '{HEADING}': run auth-node to make the file anew"));
        }
        let field = |name: &str| {
            text.lines()
                .find_map(|l| l.strip_prefix(name)?.strip_prefix('='))
                .ok_or_else(|| format!("no line '{name}=…'"))
        };
        let secret: [u8; 32] = unhex(field("secret")?).ok_or("secret: not 64 hexadecimal digits")?;
        let certificate = Certificate {
            node: NodeId(field("node")?.parse().map_err(|e| format!("node: {e}"))?),
            name: field("name")?.into(),
            public_key: public_key(&secret),
            signature: unhex(field("signature")?).ok_or("signature: not 128 hexadecimal digits")?,
        };
        let authority = unhex(field("authority")?).ok_or("authority: not 64 hexadecimal digits")?;
        let credentials = Credentials::node(field("cluster")?, authority, certificate, secret);
        let Credentials::Node(key) = &credentials else { return Ok(credentials) };
        if !key.certifies(&key.certificate) {
            return Err("the certificate's signature is wrong: run auth-node to make the file anew".into());
        }
        Ok(credentials)
    }

    /// A proof for the other side, bound to `parts` (length-prefixed, so no two lists look alike). `None` without a password.
    pub fn prove(&self, purpose: &str, parts: &[&[u8]]) -> Option<Proof> {
        let Credentials::Node(key) = self else { return None };
        let signature = key.secret.sign(&listed(purpose, parts)).to_bytes();
        Some(Proof { certificate: key.certificate.clone(), signature })
    }

    /// Which node the other side is; `None` without a password.
    pub fn believe(
        &self,
        purpose: &str,
        parts: &[&[u8]],
        proof: Option<&Proof>,
    ) -> Result<Option<NodeId>, NotBelieved> {
        match (self, proof) {
            (Credentials::Open, None) => Ok(None),
            (Credentials::Open, Some(_)) => Err(NotBelieved::WeAreStrangers),
            (Credentials::Node(_), None) => Err(NotBelieved::Stranger),
            (Credentials::Node(key), Some(proof)) => {
                if !key.certifies(&proof.certificate) {
                    return Err(NotBelieved::OtherAuthority);
                }
                let certificate = &proof.certificate;
                match is_signed(&certificate.public_key, &listed(purpose, parts), &proof.signature) {
                    true => Ok(Some(certificate.node)),
                    false => Err(NotBelieved::Forged),
                }
            }
        }
    }
}

impl NodeKey {
    fn certifies(&self, c: &Certificate) -> bool {
        let signed = certified(&self.cluster, c.node, &c.name, &c.public_key);
        is_signed(&self.authority, &signed, &c.signature)
    }
}

fn certified(cluster: &str, node: NodeId, name: &str, public_key: &[u8; 32]) -> Vec<u8> {
    let parts = [cluster.as_bytes(), &node.0.to_le_bytes(), name.as_bytes(), public_key];
    listed("pstorage certificate 1", &parts)
}

pub(crate) fn sign(secret: &[u8; 32], message: &[u8]) -> [u8; 64] {
    SigningKey::from_bytes(secret).sign(message).to_bytes()
}

/// The strict check: no weak keys, one signature per message.
pub(crate) fn is_signed(public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(public_key)
        .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
}

/// The purpose and the parts as one message.
fn listed(purpose: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut all = Vec::with_capacity(512);
    for part in std::iter::once(&purpose.as_bytes()).chain(parts) {
        all.extend_from_slice(&(part.len() as u64).to_le_bytes());
        all.extend_from_slice(part);
    }
    all
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
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
    fn the_administrators_own_authority_is_read() {
        // The example of RFC 8410.
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                   -----END PRIVATE KEY-----\n";
        let public = "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1";
        assert_eq!(hex(&Authority::from_pem(pem).unwrap().public_key()), public);
        for bad in ["", "x", &pem[..90], &pem.replace("MC4C", "MC5C"), &pem.replace("K2Vw", "K2Vx")] {
            assert!(Authority::from_pem(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn key_file_round_trips_and_says_what_is_wrong() {
        let text = Credentials::for_test(9, 4).to_text();
        let read = Credentials::from_text(&text).unwrap();
        assert_eq!((read.to_text(), read.node_id()), (text.clone(), Some(NodeId(4))));
        assert!(Credentials::from_text("junk").unwrap_err().contains("first line"));
        let cut = text.replace("secret=", "secret=zz");
        assert!(Credentials::from_text(&cut).unwrap_err().contains("secret"));
        let other = text.replace("node=4", "node=5");
        assert!(Credentials::from_text(&other).unwrap_err().contains("signature is wrong"));
        assert!(!format!("{read:?}").contains(text.lines().last().unwrap()), "no secret in logs");
    }

    #[test]
    fn proofs_bind_key_purpose_and_parts() {
        let (a, b) = (Credentials::for_test(1, 1), Credentials::for_test(1, 2));
        let proof = b.prove("a", &[b"x", b"yz"]).unwrap();
        let seen = |purpose: &str, parts: &[&[u8]], proof| a.believe(purpose, parts, Some(proof));
        assert_eq!(seen("a", &[b"x", b"yz"], &proof), Ok(Some(NodeId(2))));
        assert_eq!(seen("a", &[b"xy", b"z"], &proof), Err(NotBelieved::Forged));
        assert_eq!(seen("b", &[b"x", b"yz"], &proof), Err(NotBelieved::Forged));
        let foreign = Credentials::for_test(2, 2).prove("a", &[b"x", b"yz"]).unwrap();
        assert_eq!(seen("a", &[b"x", b"yz"], &foreign), Err(NotBelieved::OtherAuthority));
        let mut borrowed = proof.clone();
        borrowed.certificate = foreign.certificate.clone();
        assert_eq!(seen("a", &[b"x", b"yz"], &borrowed), Err(NotBelieved::OtherAuthority));
        // A true certificate does not help who lacks its key.
        let mut stolen = a.prove("a", &[b"x", b"yz"]).unwrap();
        stolen.certificate = proof.certificate.clone();
        assert_eq!(seen("a", &[b"x", b"yz"], &stolen), Err(NotBelieved::Forged));
    }

    #[test]
    fn certificates_are_of_one_cluster_one_node_and_one_name() {
        let authority = Authority::new([1; 32]);
        let secret = [5; 32];
        let good = authority.certify("pcs1", NodeId(3), "host", public_key(&secret));
        let read = |cluster: &str, certificate: Certificate| {
            let text = Credentials::node(cluster, authority.public_key(), certificate, secret).to_text();
            Credentials::from_text(&text)
        };
        assert!(read("pcs1", good.clone()).is_ok());
        assert!(read("pcs2", good.clone()).is_err());
        assert!(read("pcs1", Certificate { node: NodeId(4), ..good.clone() }).is_err());
        assert!(read("pcs1", Certificate { name: "other".into(), ..good }).is_err());
    }

    #[test]
    fn without_a_password_nobody_proves_anything_and_the_two_kinds_do_not_mix() {
        let (open, node) = (Credentials::Open, Credentials::for_test(1, 1));
        assert_eq!(open.believe("a", &[], open.prove("a", &[]).as_ref()), Ok(None));
        assert_eq!(open.believe("a", &[], node.prove("a", &[]).as_ref()), Err(NotBelieved::WeAreStrangers));
        assert_eq!(node.believe("a", &[], None), Err(NotBelieved::Stranger));
    }

    #[test]
    fn password_makes_the_digest() {
        let salt = PasswordSalt { salt: [3; 16], memory_kib: 8 << 10, passes: 1, lanes: 1 };
        let right = PasswordDigest::new("secret", salt).unwrap();
        assert_eq!(right, PasswordDigest::new("secret", salt).unwrap());
        assert_ne!(right, PasswordDigest::new("Secret", salt).unwrap());
        assert!(PasswordDigest::new("x", PasswordSalt { memory_kib: u32::MAX, ..salt }).is_err());
    }
}
