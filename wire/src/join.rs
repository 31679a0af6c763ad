//! How a node that knows the password gets into a cluster, as two sans-io state machines. SPAKE2 proves to each side that
//! the other knows the password's digest, and tells a listener, or somebody who guesses, nothing but whether one guess was
//! right: passwords can't be tried off line.
//!
//! node                                    metadata server
//!   AskSalt {cluster}                        →
//!                                            ←  SaltReply {salt, master}
//!   Try {message}                            →
//!                                            ←  TryReply {message}
//!   JoinProof {confirmation}                 →
//!                                            ←  Right {confirmation}     (or Refused at any step)
//!   MdsRequest AddNode {public key}          →  …
//!
//! All of it goes through TLS, whose certificate is part of what is proved: nobody in the middle can pass it on. The node
//! confirms first, so that a guess that was wrong is known to the server, which counts them.

use crate::auth::{PasswordDigest, PasswordSalt};
use crate::hello::{HandshakeFailed, message, refused};
use crate::{Frame, Head, Kind, Status};
use hmac::{Hmac, Mac};
use rkyv::{Archive, Deserialize, Serialize};
use sha2::Sha256;
use shards::Channel;
use spake2::{Ed25519Group, Identity, Password, Spake2};
use std::net::SocketAddr;

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct AskSalt {
    pub cluster: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct SaltReply {
    pub salt: PasswordSalt,
    /// Who can take a node in, where this server knows it.
    pub master: Option<SocketAddr>,
}

/// 64 random bits per call, from whoever drives the machine.
struct Random<'a>(&'a mut dyn FnMut() -> u64);

impl rand_core::RngCore for Random<'_> {
    fn next_u32(&mut self) -> u32 {
        (self.0)() as u32
    }
    fn next_u64(&mut self) -> u64 {
        (self.0)()
    }
    fn fill_bytes(&mut self, dest: &mut [u8]) {
        rand_core::impls::fill_bytes_via_next(self, dest);
    }
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}
impl rand_core::CryptoRng for Random<'_> {}

/// What both sides know after the exchange, if they hold the same digest.
struct Shared(Vec<u8>);

impl Shared {
    fn confirmation(&self, whose: &[u8]) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.0).expect("HMAC takes any key length");
        mac.update(whose);
        mac
    }

    fn confirm(&self, whose: &[u8]) -> [u8; 32] {
        self.confirmation(whose).finalize().into_bytes().into()
    }

    /// In constant time.
    fn is_confirmed(&self, whose: &[u8], by: &[u8]) -> bool {
        self.confirmation(whose).verify_slice(by).is_ok()
    }
}

const NODE: &[u8] = b"pstorage node 1";
const SERVER: &[u8] = b"pstorage metadata server 1";

/// Both sides' names in the exchange; the server's holds the cluster and the channel's certificate.
fn identities(cluster: &str, certificate: &[u8; 32]) -> (Identity, Identity) {
    let server = [SERVER, certificate, cluster.as_bytes()].concat();
    (Identity::new(NODE), Identity::new(&server))
}

fn bare(kind: Kind, meta: &[u8]) -> Frame {
    Frame::new(Head::new(kind, 0), meta, shards::Buf::empty())
}

fn fail(status: Status, reason: impl Into<String>) -> HandshakeFailed {
    HandshakeFailed::new(status, reason.into())
}

fn certificate(channel: Channel) -> Result<[u8; 32], HandshakeFailed> {
    match channel {
        Channel::Encrypted { certificate } => Ok(certificate),
        Channel::Plain => Err(fail(Status::NotEncrypted, "a node joins through TLS only")),
    }
}

/// Asks a metadata server for the salt; the reply is for [`read_salt`].
pub fn ask_salt(cluster: &str) -> Frame {
    message(Kind::PasswordSalt, Status::Ok, &AskSalt { cluster: cluster.into() })
}

pub fn read_salt(frame: &Frame) -> Result<SaltReply, HandshakeFailed> {
    match frame.head.kind {
        Kind::PasswordSaltReply => {
            let reply = decode!(SaltReply, &frame.meta).map_err(|e| fail(Status::BadRequest, e))?;
            reply.salt.check().map_err(|e| fail(Status::BadRequest, e))?;
            Ok(reply)
        }
        Kind::Refused => Err(refused(frame)),
        other => Err(fail(Status::BadRequest, format!("{other:?} in place of the password's salt"))),
    }
}

/// The node.
pub struct Joiner {
    state: Option<Spake2<Ed25519Group>>,
    shared: Option<Shared>,
}

impl Joiner {
    /// Returns the machine and the Try to send. `channel`: as this side sees it.
    pub fn new(
        digest: &PasswordDigest,
        cluster: &str,
        channel: Channel,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<(Joiner, Frame), HandshakeFailed> {
        let (node, server) = identities(cluster, &certificate(channel)?);
        let (state, out) = Spake2::<Ed25519Group>::start_a_with_rng(
            &Password::new(digest.digest),
            &node,
            &server,
            Random(random),
        );
        Ok((Joiner { state: Some(state), shared: None }, bare(Kind::Try, &out)))
    }

    /// The frame to send, or `None` when the server knows the password too and takes the node in.
    pub fn on_frame(&mut self, frame: &Frame) -> Result<Option<Frame>, HandshakeFailed> {
        match (frame.head.kind, self.state.take(), &self.shared) {
            (Kind::TryReply, Some(state), None) => {
                let key = state.finish(&frame.meta);
                let shared =
                    Shared(key.map_err(|e| fail(Status::BadRequest, format!("the server's part: {e:?}")))?);
                let proof = bare(Kind::JoinProof, &shared.confirm(NODE));
                self.shared = Some(shared);
                Ok(Some(proof))
            }
            (Kind::Right, None, Some(shared)) if shared.is_confirmed(SERVER, &frame.meta) => Ok(None),
            (Kind::Right, ..) => {
                Err(fail(Status::WrongPassword, "the server does not know the password itself"))
            }
            (Kind::Refused, ..) => Err(refused(frame)),
            (other, ..) => Err(fail(Status::BadRequest, format!("{other:?} while joining"))),
        }
    }
}

/// The metadata server.
pub struct Gate {
    cluster: String,
    digest: PasswordDigest,
    shared: Option<Shared>,
}

/// What the gate wants after a frame.
pub enum GateStep {
    /// Send this and go on waiting.
    Send(Frame),
    /// Send this; the node knows the password. It may ask for its certificate, and for nothing else.
    Open(Frame),
}

impl Gate {
    pub fn new(cluster: &str, digest: PasswordDigest) -> Gate {
        Gate { cluster: cluster.into(), digest, shared: None }
    }

    /// `master`: told to who asks for the salt.
    pub fn on_frame(
        &mut self,
        frame: &Frame,
        channel: Channel,
        master: Option<SocketAddr>,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<GateStep, HandshakeFailed> {
        let certificate = certificate(channel)?;
        match (frame.head.kind, self.shared.take()) {
            (Kind::PasswordSalt, None) => {
                let asked = decode!(AskSalt, &frame.meta).map_err(|e| fail(Status::BadRequest, e))?;
                if asked.cluster != self.cluster {
                    return Err(crate::hello::other_cluster(&self.cluster, &asked.cluster));
                }
                let reply = SaltReply { salt: self.digest.salt, master };
                Ok(GateStep::Send(message(Kind::PasswordSaltReply, Status::Ok, &reply)))
            }
            (Kind::Try, None) => {
                let (node, server) = identities(&self.cluster, &certificate);
                let (state, out) = Spake2::<Ed25519Group>::start_b_with_rng(
                    &Password::new(self.digest.digest),
                    &node,
                    &server,
                    Random(random),
                );
                let key = state.finish(&frame.meta);
                let key = key.map_err(|e| fail(Status::BadRequest, format!("the node's part: {e:?}")))?;
                self.shared = Some(Shared(key));
                Ok(GateStep::Send(bare(Kind::TryReply, &out)))
            }
            (Kind::JoinProof, Some(shared)) => match shared.is_confirmed(NODE, &frame.meta) {
                true => Ok(GateStep::Open(bare(Kind::Right, &shared.confirm(SERVER)))),
                false => Err(fail(Status::WrongPassword, "wrong password for this cluster")),
            },
            (other, _) => Err(fail(Status::NotReady, format!("{other:?} before authentication"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEALED: Channel = Channel::Encrypted { certificate: [4; 32] };

    fn digest(password: &str) -> PasswordDigest {
        let salt = PasswordSalt { salt: [3; 16], memory_kib: 8 << 10, passes: 1, lanes: 1 };
        PasswordDigest::new(password, salt).unwrap()
    }

    /// Whether each side let the other in, the node first. Channels as each of them sees it.
    fn join(theirs: &str, clusters: [&str; 2], [here, there]: [Channel; 2]) -> Result<(), HandshakeFailed> {
        let mut seed = 7u64;
        let mut random = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            seed
        };
        let mut gate = Gate::new(clusters[1], digest("secret"));
        let GateStep::Send(salt) = gate.on_frame(&ask_salt(clusters[0]), there, None, &mut random)? else {
            panic!("the salt is expected")
        };
        assert_eq!(read_salt(&salt)?.salt, digest("secret").salt);
        let (mut joiner, first) = Joiner::new(&digest(theirs), clusters[0], here, &mut random)?;
        let GateStep::Send(reply) = gate.on_frame(&first, there, None, &mut random)? else { panic!() };
        let proof = joiner.on_frame(&reply)?.expect("a proof");
        let GateStep::Open(right) = gate.on_frame(&proof, there, None, &mut random)? else { panic!() };
        assert_eq!(joiner.on_frame(&right)?, None);
        Ok(())
    }

    #[test]
    fn who_knows_the_password_comes_in_and_nobody_else() {
        join("secret", ["pcs1", "pcs1"], [SEALED; 2]).unwrap();
        let wrong = join("guess", ["pcs1", "pcs1"], [SEALED; 2]).unwrap_err();
        assert_eq!(wrong.status, Status::WrongPassword);
        let other = join("secret", ["pcs1", "pcs2"], [SEALED; 2]).unwrap_err();
        assert_eq!(other.status, Status::WrongCluster);
    }

    #[test]
    fn somebody_in_the_middle_and_plain_channels_do_not_get_in() {
        let his = Channel::Encrypted { certificate: [5; 32] };
        let found = join("secret", ["pcs1", "pcs1"], [his, SEALED]).unwrap_err();
        assert_eq!(found.status, Status::WrongPassword);
        let plain = join("secret", ["pcs1", "pcs1"], [Channel::Plain; 2]).unwrap_err();
        assert_eq!(plain.status, Status::NotEncrypted);
    }

    #[test]
    fn one_try_per_exchange_and_nothing_out_of_order() {
        let mut zero = || 0;
        let mut gate = Gate::new("pcs1", digest("secret"));
        let proof = bare(Kind::JoinProof, &[0; 32]);
        assert!(gate.on_frame(&proof, SEALED, None, &mut zero).is_err(), "a proof of nothing");
        let junk = bare(Kind::Try, b"junk");
        assert!(gate.on_frame(&junk, SEALED, None, &mut zero).is_err());
        let (mut joiner, first) = Joiner::new(&digest("guess"), "pcs1", SEALED, &mut || 3).unwrap();
        let Ok(GateStep::Send(reply)) = gate.on_frame(&first, SEALED, None, &mut || 9) else { panic!() };
        let guess = joiner.on_frame(&reply).unwrap().expect("a proof");
        assert!(gate.on_frame(&guess, SEALED, None, &mut zero).is_err(), "wrong");
        assert!(
            gate.on_frame(&guess, SEALED, None, &mut zero).is_err(),
            "no second guess at the same exchange"
        );
        // A server that does not know the password can't take a node in.
        let (mut joiner, _) = Joiner::new(&digest("secret"), "pcs1", SEALED, &mut || 3).unwrap();
        joiner.on_frame(&reply).unwrap().expect("a proof");
        let lie = joiner.on_frame(&bare(Kind::Right, &[1; 32])).unwrap_err();
        assert_eq!(lie.status, Status::WrongPassword);
    }
}
