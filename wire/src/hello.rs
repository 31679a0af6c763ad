//! The handshake: version negotiation and mutual authentication, as two sans-io state machines.
//!
//! initiator                         acceptor
//!   Hello {versions, cluster, who, nonce}   →
//!                                   ←  Challenge {version, who, nonce, proof over both}
//!   Proof {proof over both}         →
//!                                   ←  Welcome        (or Refused {reason} at any step)
//!
//! The proofs also cover the channel the frames come through ([`Channel`]): on an encrypted one the certificate that the
//! acceptor has shown, so that nobody in the middle can pass them on.
//!
//! The initiator may send requests behind its Proof without waiting for Welcome. A peer identity carries a
//! `generation` that grows with each connection or process start: on a new connection of the same peer, the
//! acceptor drops all older connections of that peer before it handles anything of the new one, so a request
//! still lying in an old socket can never be applied after its repetition.

use crate::auth::{ClusterKey, PasswordSalt};
use crate::frame::{VERSION, VERSION_OLDEST};
use crate::{ClientId, CsId, Frame, Head, Kind, MdsId, ShardIndex, Status};
use rkyv::{Archive, Deserialize, Serialize};
use shards::Channel;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Archive, Serialize, Deserialize)]
pub enum Peer {
    Client {
        client: ClientId,
        generation: u64,
    },
    CsShard {
        cs: CsId,
        shard: ShardIndex,
        generation: u64,
    },
    Mds {
        mds: MdsId,
        generation: u64,
    },
    /// An administrator's command, or a client before it has a session.
    Tool,
}

impl Peer {
    /// Whether `self` replaces connections of `older`: the same peer with a smaller generation.
    pub fn replaces(&self, older: &Peer) -> bool {
        match (self, older) {
            (Peer::Client { client: a, generation: g }, Peer::Client { client: b, generation: h }) => {
                a == b && g > h
            }
            (
                Peer::CsShard { cs: a, shard: s, generation: g },
                Peer::CsShard { cs: b, shard: t, generation: h },
            ) => a == b && s == t && g > h,
            (Peer::Mds { mds: a, generation: g }, Peer::Mds { mds: b, generation: h }) => a == b && g > h,
            _ => false,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Hello {
    pub version_oldest: u16,
    pub version_newest: u16,
    pub cluster: String,
    pub peer: Peer,
    pub nonce: [u8; 32],
}

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Challenge {
    pub version: u16,
    pub peer: Peer,
    pub nonce: [u8; 32],
    pub proof: [u8; 32],
}

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Refusal {
    pub reason: String,
}

const SERVER: &str = "pstorage acceptor 1";
const CLIENT: &str = "pstorage initiator 1";

fn message<T>(kind: Kind, status: Status, value: &T) -> Frame
where
    T: for<'a> Serialize<
        rkyv::api::high::HighSerializer<
            rkyv::util::AlignedVec,
            rkyv::ser::allocator::ArenaHandle<'a>,
            rkyv::rancor::Error,
        >,
    >,
{
    let mut head = Head::new(kind, 0);
    head.status = status;
    Frame::new(head, &encode!(value), shards::Buf::empty())
}

/// A refusal to send before closing.
pub fn refusal(status: Status, reason: impl Into<String>) -> Frame {
    message(Kind::Refused, status, &Refusal { reason: reason.into() })
}

/// Why a handshake failed. `reply` is to be sent to the other side before closing.
#[derive(Clone, PartialEq, Debug)]
pub struct HandshakeFailed {
    pub status: Status,
    pub reason: String,
    pub reply: Option<Frame>,
}

fn fail(status: Status, reason: String) -> HandshakeFailed {
    HandshakeFailed { status, reply: Some(refusal(status, reason.clone())), reason }
}

/// What the state machine wants after a frame.
#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    /// Send this and go on waiting.
    Send(Frame),
    /// Send this (if any); the peer is authenticated, its later frames are requests.
    Finished { send: Option<Frame>, peer: Peer, version: u16 },
}

/// The side that connects.
#[derive(Debug)]
pub struct Initiator {
    key: ClusterKey,
    hello: Hello,
    accepted: Option<(Peer, u16)>,
}

impl Initiator {
    /// Returns the machine and the Hello to send.
    pub fn new(key: ClusterKey, cluster: &str, me: Peer, nonce: [u8; 32]) -> (Self, Frame) {
        let hello = Hello {
            version_oldest: VERSION_OLDEST,
            version_newest: VERSION,
            cluster: cluster.to_string(),
            peer: me,
            nonce,
        };
        let frame = message(Kind::Hello, Status::Ok, &hello);
        (Initiator { key, hello, accepted: None }, frame)
    }

    /// Whether the Challenge was good: requests may be sent behind the Proof.
    pub fn may_send(&self) -> bool {
        self.accepted.is_some()
    }

    /// `channel`: as this side sees it.
    pub fn on_frame(&mut self, frame: &Frame, channel: Channel) -> Result<Step, HandshakeFailed> {
        match frame.head.kind {
            Kind::Challenge => {
                let c = decode!(Challenge, &frame.meta).map_err(|e| fail(Status::BadRequest, e))?;
                if !(VERSION_OLDEST..=VERSION).contains(&c.version) {
                    return Err(fail(
                        Status::Version,
                        format!("server chose protocol version {}", c.version),
                    ));
                }
                let transcript = transcript(&self.hello, c.version, &c.peer, &c.nonce, channel);
                if !self.key.verify(SERVER, &transcript.parts(), &c.proof) {
                    return Err(fail(Status::WrongPassword, not_ours(channel)));
                }
                let proof = self.key.prove(CLIENT, &transcript.parts());
                self.accepted = Some((c.peer, c.version));
                Ok(Step::Send(Frame::new(Head::new(Kind::Proof, 0), &proof, shards::Buf::empty())))
            }
            Kind::Welcome => match self.accepted {
                Some((peer, version)) => Ok(Step::Finished { send: None, peer, version }),
                None => Err(fail(Status::BadRequest, "Welcome before Challenge".into())),
            },
            Kind::Refused => {
                let reason = decode!(Refusal, &frame.meta).map_or_else(|e| e, |r| r.reason);
                Err(HandshakeFailed { status: frame.head.status, reason, reply: None })
            }
            other => Err(fail(Status::BadRequest, format!("{other:?} during the handshake"))),
        }
    }
}

/// The side that accepts.
#[derive(Debug)]
pub struct Acceptor {
    key: ClusterKey,
    cluster: String,
    me: Peer,
    nonce: [u8; 32],
    hello: Option<(Hello, u16)>,
}

impl Acceptor {
    pub fn new(key: ClusterKey, cluster: &str, me: Peer, nonce: [u8; 32]) -> Self {
        Acceptor { key, cluster: cluster.to_string(), me, nonce, hello: None }
    }

    /// `channel`: as this side sees it. With `encrypts`, a plain one is refused ([`Status::NotEncrypted`]).
    pub fn on_frame(
        &mut self,
        frame: &Frame,
        channel: Channel,
        encrypts: bool,
    ) -> Result<Step, HandshakeFailed> {
        if encrypts && channel == Channel::Plain && frame.head.kind != Kind::Refused {
            return Err(fail(
                Status::NotEncrypted,
                "this cluster encrypts its traffic (net.encrypt): connect through TLS".into(),
            ));
        }
        match (frame.head.kind, &self.hello) {
            (Kind::PasswordSalt, None) => {
                Ok(Step::Send(message(Kind::PasswordSaltReply, Status::Ok, &self.key.salt)))
            }
            (Kind::Hello, None) => {
                let hello = decode!(Hello, &frame.meta).map_err(|e| fail(Status::BadRequest, e))?;
                let version = hello.version_newest.min(VERSION);
                if version < hello.version_oldest.max(VERSION_OLDEST) {
                    return Err(fail(
                        Status::Version,
                        format!(
                            "peer speaks protocol versions {} to {}, this server {VERSION_OLDEST} to {VERSION}: \
                             upgrade the older side",
                            hello.version_oldest, hello.version_newest
                        ),
                    ));
                }
                if hello.cluster != self.cluster {
                    return Err(fail(
                        Status::WrongCluster,
                        format!("this server belongs to cluster '{}', not '{}'", self.cluster, hello.cluster),
                    ));
                }
                let transcript = transcript(&hello, version, &self.me, &self.nonce, channel);
                let proof = self.key.prove(SERVER, &transcript.parts());
                let challenge = Challenge { version, peer: self.me, nonce: self.nonce, proof };
                self.hello = Some((hello, version));
                Ok(Step::Send(message(Kind::Challenge, Status::Ok, &challenge)))
            }
            (Kind::Proof, Some((hello, version))) => {
                let proof: [u8; 32] = (&*frame.meta)
                    .try_into()
                    .map_err(|_| fail(Status::BadRequest, format!("proof of {} bytes", frame.meta.len())))?;
                let transcript = transcript(hello, *version, &self.me, &self.nonce, channel);
                if !self.key.verify(CLIENT, &transcript.parts(), &proof) {
                    return Err(fail(Status::WrongPassword, "wrong password or key for this cluster".into()));
                }
                Ok(Step::Finished {
                    send: Some(Frame::bare(Head::new(Kind::Welcome, 0))),
                    peer: hello.peer,
                    version: *version,
                })
            }
            (Kind::Refused, _) => {
                let reason = decode!(Refusal, &frame.meta).map_or_else(|e| e, |r| r.reason);
                Err(HandshakeFailed { status: frame.head.status, reason, reply: None })
            }
            (other, _) => Err(fail(Status::NotReady, format!("{other:?} before authentication"))),
        }
    }
}

/// Asks an MDS for the salt; the reply is PasswordSaltReply.
pub fn ask_salt() -> Frame {
    Frame::bare(Head::new(Kind::PasswordSalt, 0))
}

pub fn read_salt(frame: &Frame) -> Result<PasswordSalt, String> {
    let salt = decode!(PasswordSalt, &frame.meta)?;
    salt.check()?;
    Ok(salt)
}

fn not_ours(channel: Channel) -> String {
    match channel {
        Channel::Plain => "this node's key is not the cluster's".into(),
        Channel::Encrypted { .. } => {
            "this node's key is not the cluster's, or somebody stands between the two".into()
        }
    }
}

struct Transcript {
    channel: Channel,
    hello: rkyv::util::AlignedVec,
    peer: rkyv::util::AlignedVec,
    version: [u8; 2],
    nonce: [u8; 32],
}

impl Transcript {
    fn parts(&self) -> impl std::ops::Deref<Target = [&[u8]]> {
        let mut parts: smallvec::SmallVec<[&[u8]; 5]> =
            smallvec::smallvec![&self.hello[..], &self.peer[..], &self.version[..], &self.nonce[..]];
        if let Channel::Encrypted { certificate } = &self.channel {
            parts.push(certificate);
        }
        parts
    }
}

fn transcript(
    hello: &Hello,
    version: u16,
    acceptor: &Peer,
    nonce: &[u8; 32],
    channel: Channel,
) -> Transcript {
    Transcript {
        channel,
        hello: encode!(hello),
        peer: encode!(acceptor),
        version: version.to_le_bytes(),
        nonce: *nonce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEALED: Channel = Channel::Encrypted { certificate: [4; 32] };

    fn tool_to_mds(client_key: ClusterKey, cluster: &str) -> Result<(Peer, Peer), HandshakeFailed> {
        through(client_key, cluster, [Channel::Plain; 2], false)
    }

    /// With the channel as each of the two sees it, the initiator first.
    fn through(
        client_key: ClusterKey,
        cluster: &str,
        [here, there]: [Channel; 2],
        encrypts: bool,
    ) -> Result<(Peer, Peer), HandshakeFailed> {
        let server_peer = Peer::Mds { mds: MdsId(1), generation: 5 };
        let (mut i, hello) = Initiator::new(client_key, cluster, Peer::Tool, [1; 32]);
        let mut a = Acceptor::new(ClusterKey::for_test(7), "pcs1", server_peer, [2; 32]);
        let Step::Send(challenge) = a.on_frame(&hello, there, encrypts)? else {
            panic!("challenge expected")
        };
        let Step::Send(proof) = i.on_frame(&challenge, here)? else { panic!("proof expected") };
        assert!(i.may_send());
        let Step::Finished { send: Some(welcome), peer: seen_by_server, .. } =
            a.on_frame(&proof, there, encrypts)?
        else {
            panic!("welcome expected")
        };
        let Step::Finished { peer: seen_by_client, .. } = i.on_frame(&welcome, here)? else { panic!() };
        Ok((seen_by_server, seen_by_client))
    }

    #[test]
    fn a_cluster_that_encrypts_refuses_plain_frames_and_says_so() {
        let key = || ClusterKey::for_test(7);
        assert!(through(key(), "pcs1", [SEALED; 2], true).is_ok());
        assert!(through(key(), "pcs1", [SEALED; 2], false).is_ok());
        let plain = through(key(), "pcs1", [Channel::Plain; 2], true).unwrap_err();
        assert_eq!(plain.status, Status::NotEncrypted);
        let (mut initiator, _) = Initiator::new(key(), "pcs1", Peer::Tool, [1; 32]);
        let told = initiator.on_frame(&plain.reply.expect("the other side is told"), Channel::Plain);
        assert_eq!(told.unwrap_err().status, Status::NotEncrypted);
    }

    #[test]
    fn somebody_in_the_middle_is_found_by_his_certificate() {
        let his = Channel::Encrypted { certificate: [5; 32] };
        for seen in [[his, SEALED], [Channel::Plain, SEALED], [SEALED, Channel::Plain]] {
            let found = through(ClusterKey::for_test(7), "pcs1", seen, false).unwrap_err();
            assert_eq!(found.status, Status::WrongPassword, "{seen:?}");
        }
    }

    #[test]
    fn both_sides_learn_who_the_other_is() {
        let (client, server) = tool_to_mds(ClusterKey::for_test(7), "pcs1").unwrap();
        assert_eq!(client, Peer::Tool);
        assert_eq!(server, Peer::Mds { mds: MdsId(1), generation: 5 });
    }

    #[test]
    fn wrong_key_and_wrong_cluster_are_refused_with_a_reason() {
        assert_eq!(tool_to_mds(ClusterKey::for_test(8), "pcs1").unwrap_err().status, Status::WrongPassword);
        let other = tool_to_mds(ClusterKey::for_test(7), "pcs2").unwrap_err();
        assert_eq!(other.status, Status::WrongCluster);
        assert!(other.reason.contains("pcs1") && other.reply.is_some());
    }

    #[test]
    fn a_forged_proof_is_refused_by_the_server() {
        let mut a = Acceptor::new(ClusterKey::for_test(7), "pcs1", Peer::Tool, [2; 32]);
        let (_, hello) = Initiator::new(ClusterKey::for_test(8), "pcs1", Peer::Tool, [1; 32]);
        a.on_frame(&hello, Channel::Plain, false).unwrap();
        let forged = Frame::new(Head::new(Kind::Proof, 0), &[0; 32], shards::Buf::empty());
        assert_eq!(a.on_frame(&forged, Channel::Plain, false).unwrap_err().status, Status::WrongPassword);
    }

    #[test]
    fn requests_before_authentication_are_refused() {
        let mut a = Acceptor::new(ClusterKey::for_test(7), "pcs1", Peer::Tool, [2; 32]);
        assert!(a.on_frame(&Frame::bare(Head::new(Kind::Write, 1)), Channel::Plain, false).is_err());
    }
}
