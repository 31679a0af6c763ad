//! Who belongs to a cluster: certificates of nodes, and the password that gets a node one. Pure computation.
//!
//! A cluster with a password has an [`Authority`], an Ed25519 key that lives in the replicated state of the metadata
//! servers. Each node has a key of its own, made on the node and never sent, and a [`Certificate`] by which the authority
//! says that the node belongs to the cluster. Both stand in the node's `auth_digest.key` (mode 0600). Peers prove who they
//! are by signatures ([`Credentials::prove`]); a node that is taken out of the cluster is refused by its number.
//!
//! The authority can be changed while everything runs. For a time there are two, both sign every certificate, and a node
//! believes what either has signed; then only the new one. Each of these steps is a *generation* of the cluster's keys,
//! and nodes are given their certificates of it with the answers to what they ask the metadata service anyway
//! ([`Credentials::renew`]).
//!
//! The password is only needed to get a certificate ([`crate::join`]). Argon2id turns it into a [`PasswordDigest`], of which
//! the metadata service keeps a copy; the password itself is neither stored nor sent.

use crate::NodeId;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rkyv::{Archive, Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
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

    /// The first certificate of a cluster whose only authority this is.
    pub fn certify(&self, cluster: &str, node: NodeId, name: &str, public_key: [u8; 32]) -> Certificate {
        certify(std::slice::from_ref(self), 1, cluster, node, name, public_key)
    }
}

/// Says that a node belongs to the cluster. The same arguments always give the same certificate.
pub fn certify(
    authorities: &[Authority],
    generation: u32,
    cluster: &str,
    node: NodeId,
    name: &str,
    public_key: [u8; 32],
) -> Certificate {
    let signed = certified(cluster, node, name, &public_key);
    let vouch = |a: &Authority| Voucher { authority: a.public_key(), signature: sign(&a.secret, &signed) };
    let vouchers = authorities.iter().map(vouch).collect();
    Certificate { node, name: name.into(), public_key, generation, vouchers }
}

/// The public half of a secret key.
pub fn public_key(secret: &[u8; 32]) -> [u8; 32] {
    SigningKey::from_bytes(secret).verifying_key().to_bytes()
}

/// The signature of an authority.
#[derive(Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Voucher {
    /// Its public key.
    pub authority: [u8; 32],
    pub signature: [u8; 64],
}

/// That a node belongs to a cluster, signed by its authority.
#[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Certificate {
    /// Never given twice.
    pub node: NodeId,
    /// The host's name when it joined. For people only.
    pub name: String,
    pub public_key: [u8; 32],
    /// Of the cluster's keys, when this was given. Not signed.
    pub generation: u32,
    /// Of the authorities of that generation, the newest last.
    pub vouchers: Vec<Voucher>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate(node {}, {}, generation {})", self.node, self.name, self.generation)
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

/// A node's key and certificate. The node believes the authorities that vouch for it.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeKey {
    cluster: String,
    certificate: Certificate,
    secret: SigningKey,
    /// The file that it is kept in.
    path: Option<PathBuf>,
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

/// Who a peer has proved to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    pub node: NodeId,
    pub public_key: [u8; 32],
    /// The newest of the authorities that this side believes and that vouches for it.
    pub authority: [u8; 32],
    /// Of the keys that it knows.
    pub generation: u32,
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
/// Vouchers of a peer that are looked at.
const MOST_VOUCHERS: usize = 4;

impl Credentials {
    /// `secret`: 32 random bytes made on this node, whose public half `certificate` names.
    pub fn node(cluster: &str, certificate: Certificate, secret: [u8; 32]) -> Self {
        let secret = SigningKey::from_bytes(&secret);
        Credentials::Node(Arc::new(NodeKey { cluster: cluster.into(), certificate, secret, path: None }))
    }

    /// Credentials of a node of a cluster "pcs1" that exists in one test only. Another `cluster` is another authority.
    pub fn for_test(cluster: u8, node: u32) -> Self {
        let authority = Authority::new([cluster.max(1); 32]);
        let mut secret = [cluster; 32];
        secret[..4].copy_from_slice(&node.to_le_bytes());
        let certificate = authority.certify("pcs1", NodeId(node), "test", public_key(&secret));
        Credentials::node("pcs1", certificate, secret)
    }

    pub fn is_open(&self) -> bool {
        matches!(self, Credentials::Open)
    }

    /// What the node is certified with; `None` without a password.
    pub fn certificate(&self) -> Option<&Certificate> {
        match self {
            Credentials::Open => None,
            Credentials::Node(key) => Some(&key.certificate),
        }
    }

    /// The node of this cluster that these are of.
    pub fn node_id(&self) -> Option<NodeId> {
        self.certificate().map(|c| c.node)
    }

    /// Of the cluster's keys, as far as they are known here; 0 without a password.
    pub fn generation(&self) -> u32 {
        self.certificate().map_or(0, |c| c.generation)
    }

    /// Whether a peer that was believed is so still: authorities may have been given up since.
    pub fn trusts(&self, member: &Member) -> bool {
        self.certificate().is_none_or(|c| c.vouchers.iter().any(|v| v.authority == member.authority))
    }

    /// Takes this node's certificate of a newer generation, and keeps it in the file that the old one came from. True if
    /// it is taken; an older one is left alone.
    pub fn renew(&mut self, certificate: &Certificate) -> Result<bool, String> {
        let Credentials::Node(key) = self else { return Ok(false) };
        let mine = &key.certificate;
        if certificate.generation <= mine.generation {
            return Ok(false);
        }
        let is_mine = (certificate.node, &certificate.name, &certificate.public_key)
            == (mine.node, &mine.name, &mine.public_key);
        if !is_mine || !key.is_whole(certificate) || key.voucher_of(certificate).is_none() {
            return Err(format!("{certificate:?} does not follow {mine:?}"));
        }
        let next = NodeKey { certificate: certificate.clone(), ..NodeKey::clone(key) };
        next.keep()?;
        *self = Credentials::Node(Arc::new(next));
        Ok(true)
    }

    /// Those of this node, from `etc/clusters/NAME/auth_digest.key`. Without the file the cluster has no password.
    pub fn load(etc: &Path, cluster: &str) -> Result<Self, String> {
        let path = etc.join("clusters").join(cluster).join(KEY_FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let mut read = Self::from_text(&text).map_err(|why| {
                    format!(
                        "{}: {why}; 'pstorage -c {cluster} auth-node' makes the file anew",
                        path.display()
                    )
                })?;
                if let Credentials::Node(key) = &mut read {
                    Arc::make_mut(key).path = Some(path);
                }
                Ok(read)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Credentials::Open),
            Err(e) => Err(shards::text::at(&path)(e)),
        }
    }

    /// Text of `auth_digest.key`; empty without a password.
    pub fn to_text(&self) -> String {
        let Credentials::Node(key) = self else { return String::new() };
        let c = &key.certificate;
        let vouch =
            |v: &Voucher| format!("authority={}\nsignature={}\n", hex(&v.authority), hex(&v.signature));
        let vouchers: String = c.vouchers.iter().map(vouch).collect();
        format!(
            "{HEADING}\ncluster={}\nnode={}\nname={}\ngeneration={}\n{vouchers}secret={}\n",
            key.cluster,
            c.node,
            c.name,
            c.generation,
            hex(&key.secret.to_bytes())
        )
    }

    pub fn from_text(text: &str) -> Result<Self, String> {
        if text.lines().next() != Some(HEADING) {
            return Err(format!("the first line is not '{HEADING}'"));
        }
        let all = |name| text.lines().filter_map(move |l| l.strip_prefix(name)?.strip_prefix('='));
        let field = |name: &'static str| all(name).next().ok_or_else(|| format!("no line '{name}=…'"));
        let voucher = |(authority, signature)| {
            Ok(Voucher {
                authority: unhex(authority).ok_or("authority: not 64 hexadecimal digits")?,
                signature: unhex(signature).ok_or("signature: not 128 hexadecimal digits")?,
            })
        };
        let secret: [u8; 32] = unhex(field("secret")?).ok_or("secret: not 64 hexadecimal digits")?;
        let certificate = Certificate {
            node: NodeId(field("node")?.parse().map_err(|e| format!("node: {e}"))?),
            name: field("name")?.into(),
            public_key: public_key(&secret),
            generation: field("generation")?.parse().map_err(|e| format!("generation: {e}"))?,
            vouchers: all("authority").zip(all("signature")).map(voucher).collect::<Result<_, String>>()?,
        };
        let credentials = Credentials::node(field("cluster")?, certificate, secret);
        match &credentials {
            Credentials::Node(key) if !key.is_whole(&key.certificate) => {
                Err("the certificate's signature is wrong".into())
            }
            _ => Ok(credentials),
        }
    }

    /// A proof for the other side, bound to `parts` (length-prefixed, so no two lists look alike). `None` without a password.
    pub fn prove(&self, purpose: &str, parts: &[&[u8]]) -> Option<Proof> {
        let Credentials::Node(key) = self else { return None };
        let signature = key.secret.sign(&listed(purpose, parts)).to_bytes();
        Some(Proof { certificate: key.certificate.clone(), signature })
    }

    /// Who the other side is; `None` without a password.
    pub fn believe(
        &self,
        purpose: &str,
        parts: &[&[u8]],
        proof: Option<&Proof>,
    ) -> Result<Option<Member>, NotBelieved> {
        match (self, proof) {
            (Credentials::Open, None) => Ok(None),
            (Credentials::Open, Some(_)) => Err(NotBelieved::WeAreStrangers),
            (Credentials::Node(_), None) => Err(NotBelieved::Stranger),
            (Credentials::Node(key), Some(proof)) => {
                let certificate = &proof.certificate;
                let voucher = key.voucher_of(certificate).ok_or(NotBelieved::OtherAuthority)?;
                let Certificate { node, public_key, generation, .. } = *certificate;
                match is_signed(&public_key, &listed(purpose, parts), &proof.signature) {
                    true => Ok(Some(Member { node, public_key, authority: voucher.authority, generation })),
                    false => Err(NotBelieved::Forged),
                }
            }
        }
    }
}

impl NodeKey {
    /// The newest good voucher of an authority that this node believes.
    fn voucher_of(&self, c: &Certificate) -> Option<Voucher> {
        let signed = certified(&self.cluster, c.node, &c.name, &c.public_key);
        let theirs = &c.vouchers[..c.vouchers.len().min(MOST_VOUCHERS)];
        let known = self.certificate.vouchers.iter().rev().map(|v| v.authority);
        let of = |authority| theirs.iter().find(|v| v.authority == authority);
        known.filter_map(of).find(|v| is_signed(&v.authority, &signed, &v.signature)).copied()
    }

    /// Whether there are vouchers and all are good.
    fn is_whole(&self, c: &Certificate) -> bool {
        let signed = certified(&self.cluster, c.node, &c.name, &c.public_key);
        let count = c.vouchers.len();
        (1..=MOST_VOUCHERS).contains(&count)
            && c.vouchers.iter().all(|v| is_signed(&v.authority, &signed, &v.signature))
    }

    /// Into its file, unless another process of this host has done so, or the host has become another node since.
    fn keep(&self) -> Result<(), String> {
        let Some(path) = &self.path else { return Ok(()) };
        let why = |e: String| format!("{}: {e}", path.display());
        let file = std::fs::File::open(path).map_err(|e| why(e.to_string()))?;
        // All shards and services of the host come here at once. Who was later finds another file, of the new generation.
        file.lock().map_err(|e| why(e.to_string()))?;
        let text = std::fs::read_to_string(path).map_err(|e| why(e.to_string()))?;
        let stands = Credentials::from_text(&text).map_err(why)?;
        if stands.node_id() != Some(self.certificate.node)
            || stands.generation() >= self.certificate.generation
        {
            return Ok(());
        }
        let text = Credentials::Node(Arc::new(self.clone())).to_text();
        shards::ring::replace_secret(path, text.as_bytes()).map_err(|e| why(e.to_string()))
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
        let member = seen("a", &[b"x", b"yz"], &proof).unwrap().unwrap();
        assert_eq!((member.node, member.generation), (NodeId(2), 1));
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
            let text = Credentials::node(cluster, certificate, secret).to_text();
            Credentials::from_text(&text)
        };
        assert!(read("pcs1", good.clone()).is_ok());
        assert!(read("pcs2", good.clone()).is_err());
        assert!(read("pcs1", Certificate { node: NodeId(4), ..good.clone() }).is_err());
        assert!(read("pcs1", Certificate { name: "other".into(), ..good }).is_err());
    }

    #[test]
    fn the_authority_changes_while_nodes_know_different_generations() {
        let (old, new) = (Authority::new([1; 32]), Authority::new([2; 32]));
        let both = [old.clone(), new.clone()];
        let given = |node: u8, generation: u32, by: &[Authority]| {
            certify(by, generation, "pcs1", NodeId(node.into()), "host", public_key(&[node; 32]))
        };
        let node = |node: u8, generation, by: &[Authority]| {
            Credentials::node("pcs1", given(node, generation, by), [node; 32])
        };
        let seen = |a: &Credentials, b: &Credentials| a.believe("a", &[], b.prove("a", &[]).as_ref());
        let (before, during, after) = (&both[..1], &both[..], &both[1..]);
        for (ours, theirs, by) in [
            (before, before, Some(&old)),
            (before, during, Some(&old)),
            (during, before, Some(&old)),
            (during, during, Some(&new)),
            (during, after, Some(&new)),
            (after, during, Some(&new)),
            (after, after, Some(&new)),
            (before, after, None),
            (after, before, None),
        ] {
            let member = seen(&node(1, 1, ours), &node(2, 1, theirs)).map(|m| m.unwrap().authority);
            assert_eq!(member, by.map(Authority::public_key).ok_or(NotBelieved::OtherAuthority));
        }
        // One step after the other, never back, and nobody else's.
        let mut a = node(1, 1, before);
        let early = seen(&a, &node(2, 1, before)).unwrap().unwrap();
        assert!(a.renew(&given(1, 3, after)).is_err(), "nobody it believes vouches for that");
        assert!(a.renew(&given(2, 2, during)).is_err(), "another node's");
        let mut torn = given(1, 2, during);
        torn.vouchers[1].signature[0] ^= 1;
        assert!(a.renew(&torn).is_err());
        assert_eq!((a.renew(&given(1, 2, during)), a.generation()), (Ok(true), 2));
        assert_eq!((a.renew(&given(1, 1, before)), a.renew(&given(1, 2, before))), (Ok(false), Ok(false)));
        let read = Credentials::from_text(&a.to_text()).unwrap();
        assert_eq!(read.certificate(), a.certificate());
        assert!(a.trusts(&early));
        let late = seen(&a, &node(2, 2, during)).unwrap().unwrap();
        assert_eq!(
            (a.renew(&given(1, 3, after)), a.trusts(&early), a.trusts(&late)),
            (Ok(true), false, true)
        );
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
