//! The handshake: version negotiation and mutual authentication, as two sans-io state machines.
//!
//! initiator                         acceptor
//!   Hello {versions, cluster, who, nonce}   →
//!                                   ←  Challenge {version, who, nonce, proof over both}
//!   Proof {proof over both}         →
//!                                   ←  Welcome        (or Refused {reason} at any step)
//!
//! A proof is a node's certificate and a signature ([`crate::auth`]); clusters without a password have none.
//! The proofs also cover the channel the frames come through ([`Channel`]): on an encrypted one the certificate that the
//! acceptor has shown, so that nobody in the middle can pass them on.
//!
//! The initiator may send requests behind its Proof without waiting for Welcome. A peer identity carries a
//! `generation` that grows with each connection or process start: on a new connection of the same peer, the
//! acceptor drops all older connections of that peer before it handles anything of the new one, so a request
//! still lying in an old socket can never be applied after its repetition.

use crate::auth::{Credentials, Member, NotBelieved, Proof};
use crate::frame::{VERSION, VERSION_OLDEST};
use crate::{ClientId, CsId, Frame, Head, Kind, MdsId, NodeId, ShardIndex, Status};
use rkyv::{Archive, Deserialize, Serialize};
use shards::Channel;
use std::collections::BTreeSet;
use std::time::Duration;

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
    pub proof: Option<Proof>,
}

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Refusal {
    pub reason: String,
}

const SERVER: &str = "pstorage acceptor 1";
const CLIENT: &str = "pstorage initiator 1";

pub(crate) fn message<T>(kind: Kind, status: Status, value: &T) -> Frame
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

impl HandshakeFailed {
    /// The other side is told the same.
    pub fn new(status: Status, reason: String) -> HandshakeFailed {
        HandshakeFailed { status, reply: Some(refusal(status, reason.clone())), reason }
    }
}

fn fail(status: Status, reason: String) -> HandshakeFailed {
    HandshakeFailed::new(status, reason)
}

/// What the other side's refusal says.
pub(crate) fn refused(frame: &Frame) -> HandshakeFailed {
    let reason = decode!(Refusal, &frame.meta).map_or_else(|e| e, |r| r.reason);
    HandshakeFailed { status: frame.head.status, reason, reply: None }
}

pub(crate) fn other_cluster(ours: &str, theirs: &str) -> HandshakeFailed {
    fail(Status::WrongCluster, format!("this server belongs to cluster '{ours}', not '{theirs}'"))
}

/// An accepted connection that has not authenticated itself by then is closed.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Accepted connections still in the handshake; more are refused, so that strangers can't exhaust memory.
pub const MAX_GREETING: usize = 512;

/// What a server asks of those who come, beyond a proof.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// Plain channels are refused ([`Status::NotEncrypted`]).
    pub encrypts: bool,
    /// Nodes that belong to the cluster no more ([`Status::TakenOut`]).
    pub taken_out: BTreeSet<NodeId>,
}

impl Rules {
    /// Refuses a node that was taken out. Both sides of a connection ask.
    pub fn admit(&self, member: Option<&Member>) -> Result<(), HandshakeFailed> {
        match member.map(|m| m.node).filter(|node| self.taken_out.contains(node)) {
            None => Ok(()),
            Some(node) => Err(fail(
                Status::TakenOut,
                format!(
                    "node {node} was taken out of the cluster (deauth-node); auth-node takes it in again"
                ),
            )),
        }
    }
}

/// What the state machine wants after a frame.
#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    /// Send this and go on waiting.
    Send(Frame),
    /// Send this (if any); the peer is authenticated, its later frames are requests. `member`: who it has proved to be;
    /// `None` without a password.
    Finished { send: Option<Frame>, peer: Peer, version: u16, member: Option<Member> },
}

/// The side that connects.
#[derive(Debug)]
pub struct Initiator {
    credentials: Credentials,
    hello: Hello,
    accepted: Option<(Peer, u16, Option<Member>)>,
}

impl Initiator {
    /// Returns the machine and the Hello to send.
    pub fn new(credentials: Credentials, cluster: &str, me: Peer, nonce: [u8; 32]) -> (Self, Frame) {
        let hello = Hello {
            version_oldest: VERSION_OLDEST,
            version_newest: VERSION,
            cluster: cluster.to_string(),
            peer: me,
            nonce,
        };
        let frame = message(Kind::Hello, Status::Ok, &hello);
        (Initiator { credentials, hello, accepted: None }, frame)
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
                let member = self
                    .credentials
                    .believe(SERVER, &transcript.parts(), c.proof.as_ref())
                    .map_err(not_believed)?;
                let proof = self.credentials.prove(CLIENT, &transcript.parts());
                self.accepted = Some((c.peer, c.version, member));
                Ok(Step::Send(message(Kind::Proof, Status::Ok, &proof)))
            }
            Kind::Welcome => match self.accepted {
                Some((peer, version, member)) => Ok(Step::Finished { send: None, peer, version, member }),
                None => Err(fail(Status::BadRequest, "Welcome before Challenge".into())),
            },
            Kind::Refused => Err(refused(frame)),
            other => Err(fail(Status::BadRequest, format!("{other:?} during the handshake"))),
        }
    }
}

/// The side that accepts.
#[derive(Debug)]
pub struct Acceptor {
    credentials: Credentials,
    cluster: String,
    me: Peer,
    nonce: [u8; 32],
    hello: Option<(Hello, u16)>,
}

impl Acceptor {
    pub fn new(credentials: Credentials, cluster: &str, me: Peer, nonce: [u8; 32]) -> Self {
        Acceptor { credentials, cluster: cluster.to_string(), me, nonce, hello: None }
    }

    /// `channel`: as this side sees it.
    pub fn on_frame(
        &mut self,
        frame: &Frame,
        channel: Channel,
        rules: &Rules,
    ) -> Result<Step, HandshakeFailed> {
        if rules.encrypts && channel == Channel::Plain && frame.head.kind != Kind::Refused {
            return Err(fail(
                Status::NotEncrypted,
                "this cluster encrypts its traffic (net.encrypt): connect through TLS".into(),
            ));
        }
        match (frame.head.kind, &self.hello) {
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
                    return Err(other_cluster(&self.cluster, &hello.cluster));
                }
                let transcript = transcript(&hello, version, &self.me, &self.nonce, channel);
                let proof = self.credentials.prove(SERVER, &transcript.parts());
                let challenge = Challenge { version, peer: self.me, nonce: self.nonce, proof };
                self.hello = Some((hello, version));
                Ok(Step::Send(message(Kind::Challenge, Status::Ok, &challenge)))
            }
            (Kind::Proof, Some((hello, version))) => {
                let proof = decode!(Option<Proof>, &frame.meta).map_err(|e| fail(Status::BadRequest, e))?;
                let transcript = transcript(hello, *version, &self.me, &self.nonce, channel);
                let member = self
                    .credentials
                    .believe(CLIENT, &transcript.parts(), proof.as_ref())
                    .map_err(not_believed)?;
                rules.admit(member.as_ref())?;
                Ok(Step::Finished {
                    send: Some(Frame::bare(Head::new(Kind::Welcome, 0))),
                    peer: hello.peer,
                    version: *version,
                    member,
                })
            }
            (Kind::Refused, _) => Err(refused(frame)),
            (other, _) => Err(fail(Status::NotReady, format!("{other:?} before authentication"))),
        }
    }
}

fn not_believed(why: NotBelieved) -> HandshakeFailed {
    fail(Status::WrongPassword, why.to_string())
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

    fn tool_to_mds(key: Credentials, cluster: &str) -> Result<(Peer, Peer), HandshakeFailed> {
        through(key, cluster, [Channel::Plain; 2], &Rules::default())
    }

    /// With the channel as each of the two sees it, the initiator first.
    fn through(
        key: Credentials,
        cluster: &str,
        [here, there]: [Channel; 2],
        rules: &Rules,
    ) -> Result<(Peer, Peer), HandshakeFailed> {
        let server_peer = Peer::Mds { mds: MdsId(1), generation: 5 };
        let (mut i, hello) = Initiator::new(key, cluster, Peer::Tool, [1; 32]);
        let mut a = Acceptor::new(Credentials::for_test(7, 1), "pcs1", server_peer, [2; 32]);
        let Step::Send(challenge) = a.on_frame(&hello, there, rules)? else { panic!("challenge expected") };
        let Step::Send(proof) = i.on_frame(&challenge, here)? else { panic!("proof expected") };
        assert!(i.may_send());
        let Step::Finished { send: Some(welcome), peer: seen_by_server, .. } =
            a.on_frame(&proof, there, rules)?
        else {
            panic!("welcome expected")
        };
        let Step::Finished { peer: seen_by_client, .. } = i.on_frame(&welcome, here)? else { panic!() };
        Ok((seen_by_server, seen_by_client))
    }

    #[test]
    fn a_cluster_that_encrypts_refuses_plain_frames_and_says_so() {
        let key = || Credentials::for_test(7, 2);
        let encrypts = Rules { encrypts: true, ..Rules::default() };
        assert!(through(key(), "pcs1", [SEALED; 2], &encrypts).is_ok());
        assert!(through(key(), "pcs1", [SEALED; 2], &Rules::default()).is_ok());
        let plain = through(key(), "pcs1", [Channel::Plain; 2], &encrypts).unwrap_err();
        assert_eq!(plain.status, Status::NotEncrypted);
        let (mut initiator, _) = Initiator::new(key(), "pcs1", Peer::Tool, [1; 32]);
        let told = initiator.on_frame(&plain.reply.expect("the other side is told"), Channel::Plain);
        assert_eq!(told.unwrap_err().status, Status::NotEncrypted);
    }

    #[test]
    fn somebody_in_the_middle_is_found_by_his_certificate() {
        let his = Channel::Encrypted { certificate: [5; 32] };
        for seen in [[his, SEALED], [Channel::Plain, SEALED], [SEALED, Channel::Plain]] {
            let found = through(Credentials::for_test(7, 1), "pcs1", seen, &Rules::default()).unwrap_err();
            assert_eq!(found.status, Status::WrongPassword, "{seen:?}");
        }
    }

    #[test]
    fn both_sides_learn_who_the_other_is() {
        let (client, server) = tool_to_mds(Credentials::for_test(7, 1), "pcs1").unwrap();
        assert_eq!(client, Peer::Tool);
        assert_eq!(server, Peer::Mds { mds: MdsId(1), generation: 5 });
    }

    #[test]
    fn wrong_key_and_wrong_cluster_are_refused_with_a_reason() {
        assert_eq!(
            tool_to_mds(Credentials::for_test(8, 1), "pcs1").unwrap_err().status,
            Status::WrongPassword
        );
        let other = tool_to_mds(Credentials::for_test(7, 1), "pcs2").unwrap_err();
        assert_eq!(other.status, Status::WrongCluster);
        assert!(other.reason.contains("pcs1") && other.reply.is_some());
    }

    #[test]
    fn a_forged_proof_is_refused_by_the_server() {
        let mut a = Acceptor::new(Credentials::for_test(7, 1), "pcs1", Peer::Tool, [2; 32]);
        let (_, hello) = Initiator::new(Credentials::for_test(8, 1), "pcs1", Peer::Tool, [1; 32]);
        a.on_frame(&hello, Channel::Plain, &Rules::default()).unwrap();
        let borrowed = Credentials::for_test(7, 2).prove(CLIENT, &[b"another hello"]);
        for forged in [None, borrowed, Credentials::for_test(8, 1).prove(CLIENT, &[])] {
            let forged = message(Kind::Proof, Status::Ok, &forged);
            let refused = a.on_frame(&forged, Channel::Plain, &Rules::default()).unwrap_err();
            assert_eq!(refused.status, Status::WrongPassword);
        }
        let junk = Frame::new(Head::new(Kind::Proof, 0), &[0; 32], shards::Buf::empty());
        assert!(a.on_frame(&junk, Channel::Plain, &Rules::default()).is_err());
    }

    #[test]
    fn a_node_that_was_taken_out_is_told_so() {
        let rules = Rules { taken_out: [NodeId(2)].into(), ..Rules::default() };
        let came = |node| through(Credentials::for_test(7, node), "pcs1", [Channel::Plain; 2], &rules);
        assert!(came(3).is_ok());
        let refused = came(2).unwrap_err();
        assert_eq!(refused.status, Status::TakenOut);
        assert!(refused.reason.contains("node 2") && refused.reply.is_some(), "{refused:?}");
    }

    #[test]
    fn who_is_not_authenticated_is_told_so_by_itself() {
        let stranger = tool_to_mds(Credentials::Open, "pcs1").unwrap_err();
        assert_eq!(stranger.status, Status::WrongPassword);
        assert!(stranger.reason.contains("this side is not authenticated"), "{}", stranger.reason);
    }

    #[test]
    fn requests_before_authentication_are_refused() {
        let mut a = Acceptor::new(Credentials::for_test(7, 1), "pcs1", Peer::Tool, [2; 32]);
        assert!(
            a.on_frame(&Frame::bare(Head::new(Kind::Write, 1)), Channel::Plain, &Rules::default()).is_err()
        );
    }
}
