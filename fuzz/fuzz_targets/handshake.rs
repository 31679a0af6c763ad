//! Whatever a peer sends before it is authenticated must be refused or answered, never panic, and never let it in: the
//! handshake of both sides, and the gate by which nodes join. Sequences of frames: true ones, true ones with bytes changed, junk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shards::{Buf, Channel};
use std::sync::LazyLock;
use wire::auth::{Credentials, PasswordDigest, PasswordSalt};
use wire::hello::{Acceptor, Initiator, Peer, Rules, Step};
use wire::join::{Gate, GateStep, Joiner};
use wire::{Frame, Head, Kind};

const SEALED: Channel = Channel::Encrypted { certificate: [4; 32] };
const KINDS: [Kind; 13] = [
    Kind::Hello, Kind::Challenge, Kind::Proof, Kind::Welcome, Kind::Refused, Kind::Ping, Kind::PasswordSalt,
    Kind::PasswordSaltReply, Kind::Try, Kind::TryReply, Kind::JoinProof, Kind::Right, Kind::MdsRequest,
];

static DIGEST: LazyLock<[PasswordDigest; 2]> = LazyLock::new(|| {
    let salt = PasswordSalt { salt: [3; 16], memory_kib: 8 << 10, passes: 1, lanes: 1 };
    ["secret", "guess"].map(|password| PasswordDigest::new(password, salt).expect("sane"))
});

/// A frame that the fuzzer made of `true_one`: the same, with bytes changed or cut, or another one.
fn bent(true_one: Option<&Frame>, step: &[u8]) -> Frame {
    let (how, rest) = step.split_first().unwrap_or((&0, &[]));
    match (how % 4, true_one) {
        (0, Some(frame)) => frame.clone(),
        (1, Some(frame)) => {
            let mut meta = frame.meta.to_vec();
            for pair in rest.chunks_exact(2).filter(|_| !frame.meta.is_empty()) {
                let at = usize::from(pair[0]) % meta.len();
                meta[at] ^= pair[1];
            }
            Frame::new(frame.head, &meta, Buf::empty())
        }
        (2, Some(frame)) => {
            let cut = usize::from(rest.first().copied().unwrap_or(0)).min(frame.meta.len());
            Frame::new(frame.head, &frame.meta[..cut], Buf::empty())
        }
        _ => {
            let kind = KINDS[usize::from(rest.first().copied().unwrap_or(0)) % KINDS.len()];
            Frame::new(Head::new(kind, 0), rest.get(1..).unwrap_or(&[]), Buf::empty())
        }
    }
}

/// Both sides of a handshake, of which the initiator is `theirs`; each frame goes through `bent`.
fn handshake(theirs: Credentials, is_stranger: bool, steps: &mut dyn Iterator<Item = &[u8]>) {
    let rules = Rules::default();
    let mut acceptor = Acceptor::new(Credentials::for_test(1, 1), "pcs1", Peer::Tool, [2; 32]);
    let (mut initiator, first) = Initiator::new(theirs, "pcs1", Peer::Tool, [1; 32]);
    let mut to_acceptor = Some(first);
    let mut to_initiator: Option<Frame> = None;
    for step in steps {
        let frame = bent(to_acceptor.as_ref(), step);
        match acceptor.on_frame(&frame, SEALED, &rules) {
            Ok(Step::Send(frame)) => to_initiator = Some(frame),
            Ok(Step::Finished { .. }) => {
                assert!(!is_stranger, "a stranger was let in");
                return;
            }
            Err(_) => return,
        }
        let Some(answer) = &to_initiator else { continue };
        let frame = bent(Some(answer), step.get(1..).unwrap_or(&[]));
        match initiator.on_frame(&frame, SEALED) {
            Ok(Step::Send(frame)) => to_acceptor = Some(frame),
            Ok(Step::Finished { .. }) | Err(_) => return,
        }
    }
}

/// A node at the gate with the wrong password.
fn join(steps: &mut dyn Iterator<Item = &[u8]>) {
    let mut seed = 7u64;
    let mut random = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        seed
    };
    let mut gate = Gate::new("pcs1", DIGEST[0].clone());
    let Ok((mut joiner, first)) = Joiner::new(&DIGEST[1], "pcs1", SEALED, &mut random) else { return };
    let mut next = Some(first);
    for step in steps {
        let frame = bent(next.as_ref(), step);
        match gate.on_frame(&frame, SEALED, None, &mut random) {
            Ok(GateStep::Send(answer)) => {
                let answer = bent(Some(&answer), step.get(1..).unwrap_or(&[]));
                match joiner.on_frame(&answer) {
                    Ok(Some(frame)) => next = Some(frame),
                    Ok(None) => panic!("the gate opened for a guess"),
                    Err(_) => return,
                }
            }
            Ok(GateStep::Open(_)) => panic!("the gate opened for a guess"),
            Err(_) => return,
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&what, rest)) = bytes.split_first() else { return };
    let mut steps = rest.split(|b| *b == 0xff);
    match what % 4 {
        0 => handshake(Credentials::Open, true, &mut steps),
        1 => handshake(Credentials::for_test(3, 2), true, &mut steps),
        2 => handshake(Credentials::for_test(1, 2), false, &mut steps),
        _ => join(&mut steps),
    }
});
