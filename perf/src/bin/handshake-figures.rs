//! What a handshake costs both sides together, on one thread: without a password, and with certificates of nodes. And what
//! a try of the password costs a metadata server and the node. Docs: docs/decisions/006-nodes-and-password.md.

use clap::Parser;
use std::time::Instant;
use wire::auth::{Credentials, PasswordDigest, PasswordSalt};
use wire::hello::{Acceptor, Initiator, Peer, Rules, Step};
use wire::join::{Gate, GateStep, Joiner};

/// Measures handshakes: CPU microseconds of both sides together.
#[derive(Parser)]
struct Arguments {
    /// Handshakes of each kind in a round.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// The median of so many rounds counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

fn handshake(here: &Credentials, there: &Credentials) {
    let plain = shards::Channel::Plain;
    let rules = Rules::default();
    let (mut initiator, hello) = Initiator::new(here.clone(), "pcs1", Peer::Tool, [1; 32]);
    let mut acceptor = Acceptor::new(there.clone(), "pcs1", Peer::Tool, [2; 32]);
    let Ok(Step::Send(challenge)) = acceptor.on_frame(&hello, plain, &rules) else { panic!("no challenge") };
    let Ok(Step::Send(proof)) = initiator.on_frame(&challenge, plain) else { panic!("no proof") };
    let step = acceptor.on_frame(&proof, plain, &rules);
    assert!(matches!(step, Ok(Step::Finished { .. })), "{step:?}");
}

fn try_password(digest: &PasswordDigest) {
    let channel = shards::Channel::Encrypted { certificate: [4; 32] };
    let mut random = || u64::from_le_bytes(shards::host::random_bytes());
    let mut gate = Gate::new("pcs1", digest.clone());
    let (mut joiner, first) = Joiner::new(digest, "pcs1", channel, &mut random).expect("TLS");
    let Ok(GateStep::Send(reply)) = gate.on_frame(&first, channel, None, &mut random) else {
        panic!("no reply")
    };
    let proof = joiner.on_frame(&reply).expect("a good reply").expect("a proof");
    assert!(matches!(gate.on_frame(&proof, channel, None, &mut random), Ok(GateStep::Open(_))));
}

/// Microseconds for each, on one thread that does nothing else.
fn measured(arguments: &Arguments, mut once: impl FnMut()) -> f64 {
    let round = || {
        let began = Instant::now();
        (0..arguments.count).for_each(|_| once());
        began.elapsed().as_secs_f64() * 1e6 / f64::from(arguments.count)
    };
    perf::engine::median(std::iter::repeat_with(round).take(arguments.rounds as usize).collect(), |us| *us)
}

fn main() {
    let arguments = Arguments::parse();
    let digest = PasswordDigest::new("secret", PasswordSalt::with_salt([3; 16])).expect("sane parameters");
    let (a, b) = (Credentials::for_test(1, 1), Credentials::for_test(1, 2));
    let open = measured(&arguments, || handshake(&Credentials::Open, &Credentials::Open));
    let nodes = measured(&arguments, || handshake(&a, &b));
    let tries = measured(&arguments, || try_password(&digest));
    println!("handshake without a password   {open:8.1} us");
    println!("handshake with certificates    {nodes:8.1} us");
    println!("try of a password, both sides  {tries:8.1} us");
}
