//! Who belongs to the cluster: `auth-node`, `passwd`, `rotate-key`, `list-nodes`, `deauth-node`.

use super::stat::{table, time};
use crate::mds_link::{connect_encrypted, receive};
use crate::{Context, Outcome};
use shards::blocking::BlockingConn;
use std::io::{BufRead, IsTerminal};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wire::auth::{Authority, Credentials, Foundation, KEY_FILE, PasswordDigest, PasswordSalt, public_key};
use wire::hello::HandshakeFailed;
use wire::join::{self, Joiner};
use wire::mds_api::{KeyStep, MdsReply, MdsRequest, NewNode, NodeInfo};
use wire::{Frame, Head, Kind, NodeId, Status, decode, encode};

const ANSWER: Duration = Duration::from_secs(2);
/// How long to look for the master, and to wait for it to take the node in.
const PATIENCE: Duration = Duration::from_secs(10);

/// From a file, the terminal, or the first line of standard input.
pub fn ask_password(prompt: &str, file: Option<&Path>) -> Outcome<String> {
    let password = if let Some(path) = file {
        crate::read_text(path)?
    } else if std::io::stdin().is_terminal() {
        rpassword::prompt_password(prompt).map_err(|e| format!("reading the password: {e}"))?
    } else {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map_err(|e| format!("reading the password: {e}"))?;
        line
    };
    let password = password.trim_end_matches(['\n', '\r']).to_string();
    if !password.is_empty() {
        return Ok(password);
    }
    Err(match file {
        Some(path) => format!("{}: its first line is empty; the password is expected there", path.display()),
        None if std::io::stdin().is_terminal() => "the password is empty; nothing was done".into(),
        None => "no password on standard input: run this on a terminal, or give it with --password-file FILE"
            .into(),
    })
}

/// A password for the cluster; asks twice on a terminal.
pub fn new_password(prompt: &str, file: Option<&Path>) -> Outcome<String> {
    let password = ask_password(prompt, file)?;
    if file.is_none() && std::io::stdin().is_terminal() {
        let again = ask_password("Please repeat the password: ", None)?;
        if again != password {
            return Err("the two passwords differ; nothing was done".into());
        }
    }
    Ok(password)
}

fn new_digest(password: &str) -> Outcome<PasswordDigest> {
    PasswordDigest::new(password, PasswordSalt::with_salt(shards::host::random_bytes()))
}

/// What a new cluster with this password begins with, and what its first node proves itself with.
pub fn found(
    cluster: &str,
    password: &str,
    authority: Option<Authority>,
) -> Outcome<(Foundation, Credentials)> {
    let authority = authority.unwrap_or_else(|| Authority::new(shards::host::random_bytes()));
    let secret = shards::host::random_bytes();
    let founder = authority.certify(cluster, NodeId(1), &name_of_host(), public_key(&secret));
    let credentials = Credentials::node(cluster, founder.clone(), secret);
    let foundation =
        Foundation { cluster: cluster.into(), authority, password: new_digest(password)?, founder };
    Ok((foundation, credentials))
}

/// The administrator's own authority.
pub fn read_authority(file: &Path) -> Outcome<Authority> {
    Authority::from_pem(&crate::read_text(file)?).map_err(|why| format!("{}: {why}", file.display()))
}

/// The host's name, without what would not stand on one line.
fn name_of_host() -> String {
    shards::host::host_name().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Stores this node's key, readable by root only.
pub fn store_key(context: &Context, credentials: &Credentials) -> Outcome {
    let path = context.cluster_dir()?.join(KEY_FILE);
    shards::ring::replace_secret(&path, credentials.to_text().as_bytes()).map_err(shards::text::at(&path))
}

/// Why a node does not get in.
enum Refused {
    /// Somebody else may take it in, or this one later.
    Perhaps(String),
    /// The cluster has no password.
    Open,
    WrongPassword,
    For(String),
}

impl From<HandshakeFailed> for Refused {
    fn from(failed: HandshakeFailed) -> Refused {
        match failed.status {
            Status::NotSupported => Refused::Open,
            Status::WrongPassword => Refused::WrongPassword,
            Status::NotReady | Status::NotMaster | Status::BadRequest => Refused::Perhaps(failed.reason),
            _ => Refused::For(failed.reason),
        }
    }
}

/// Proves to the master that this node knows the password, and keeps the certificate that it gives.
pub fn auth_node(context: &Context, password_file: Option<&Path>, bootstrap: &[SocketAddr]) -> Outcome {
    let cluster = context.cluster()?;
    let known = if bootstrap.is_empty() { context.mds()? } else { [bootstrap, &context.bs_list()?].concat() };
    let before = Credentials::load(&context.etc, cluster).ok().and_then(|c| c.node_id());
    // Nobody types a password for a cluster that is not there. The connection does not wait so long.
    let Some(gate) = find_master(cluster, &known, |gate| Ok(gate.salt))? else {
        context.add_to_bs_list(bootstrap)?;
        println!("Cluster '{cluster}' has no password: this node needs no authentication.");
        return Ok(());
    };
    let password = ask_password("Please enter password for cluster: ", password_file)?;
    let mut digest = PasswordDigest::new(&password, gate)?;
    let admitted = find_master(cluster, &known, |gate| {
        if gate.salt != digest.salt {
            digest = PasswordDigest::new(&password, gate.salt).map_err(Refused::For)?;
        }
        gate.enter(cluster, &digest)
    })?;
    let Some(credentials) = admitted else {
        return Err(format!("cluster '{cluster}' has lost its password meanwhile. Nothing was stored"));
    };
    store_key(context, &credentials)?;
    context.add_to_bs_list(bootstrap)?;
    let node = credentials.node_id().map_or(0, |n| n.0);
    println!("This node is authenticated in cluster '{cluster}' as node {node}.");
    if let Some(before) = before {
        println!(
            "It was node {before} before. Services and mounts that run go on as that until they are started anew; then take \
             it out: pstorage -c {cluster} deauth-node {before}"
        );
    }
    Ok(())
}

/// A master that waits for a password.
struct AtGate {
    conn: BlockingConn,
    salt: PasswordSalt,
}

/// Finds the master, by any of the `known` servers, and does `then` there. `None`: the cluster has no password.
fn find_master<T>(
    cluster: &str,
    known: &[SocketAddr],
    mut then: impl FnMut(AtGate) -> Result<T, Refused>,
) -> Outcome<Option<T>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut tried = Vec::new();
        let mut candidates = known.to_vec();
        let mut at = 0;
        while at < candidates.len() && at < 12 {
            let addr = candidates[at];
            at += 1;
            let outcome = go_to(cluster, addr).and_then(|(gate, master)| match master {
                Some(master) if master != addr => {
                    if !candidates[at..].contains(&master) {
                        candidates.insert(at, master);
                    }
                    Err(Refused::Perhaps(format!("the master is {master}")))
                }
                Some(_) => then(gate),
                None => Err(Refused::Perhaps("no master is known at the moment".into())),
            });
            match outcome {
                Ok(done) => return Ok(Some(done)),
                Err(Refused::Open) => return Ok(None),
                Err(Refused::WrongPassword) => {
                    return Err(format!(
                        "wrong password: {addr} of cluster '{cluster}' does not accept it. Nothing was stored; try again"
                    ));
                }
                Err(Refused::For(why)) => return Err(format!("{addr}: {why}. Nothing was stored")),
                Err(Refused::Perhaps(why)) => tried.push(format!("{addr}: {why}")),
            }
        }
        if Instant::now() > deadline {
            tried.dedup();
            return Err(format!(
                "no metadata server of '{cluster}' answers as master. Tried:\n  {}\nNothing was stored.",
                tried.join("\n  ")
            ));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Goes to a metadata server and asks for the salt, and who is the master.
fn go_to(cluster: &str, addr: SocketAddr) -> Result<(AtGate, Option<SocketAddr>), Refused> {
    let mut conn = connect_encrypted(addr, ANSWER).map_err(Refused::Perhaps)?;
    let reply = join::read_salt(&ask(&mut conn, &join::ask_salt(cluster), ANSWER)?)?;
    Ok((AtGate { conn, salt: reply.salt }, reply.master))
}

fn ask(conn: &mut BlockingConn, frame: &Frame, within: Duration) -> Result<Frame, Refused> {
    conn.send(&frame.encode()).map_err(|e| Refused::Perhaps(e.to_string()))?;
    receive(conn, within).map_err(Refused::Perhaps)
}

impl AtGate {
    /// Proves the password and asks for a certificate for a new key.
    fn enter(self, cluster: &str, digest: &PasswordDigest) -> Result<Credentials, Refused> {
        let mut conn = self.conn;
        let mut random = || u64::from_le_bytes(shards::host::random_bytes());
        let (mut joiner, mut next) = Joiner::new(digest, cluster, conn.channel(), &mut random)?;
        loop {
            let answer = ask(&mut conn, &next, ANSWER)?;
            match joiner.on_frame(&answer)? {
                Some(frame) => next = frame,
                None => break,
            }
        }
        let secret = shards::host::random_bytes();
        let new = NewNode { name: name_of_host(), public_key: public_key(&secret) };
        let meta = encode!(&MdsRequest::AddNode(Box::new(new)));
        let request = Frame::new(Head::new(Kind::MdsRequest, 1), &meta, shards::Buf::empty());
        let answer = ask(&mut conn, &request, PATIENCE)?;
        match decode!(MdsReply, &answer.meta).map_err(Refused::For)? {
            MdsReply::Admitted(certificate) => Ok(Credentials::node(cluster, *certificate, secret)),
            MdsReply::Failed { status: Status::NotMaster | Status::NotReady, detail, .. } => {
                Err(Refused::Perhaps(detail))
            }
            MdsReply::Failed { detail, .. } => Err(Refused::For(detail)),
            other => Err(Refused::For(format!("an unexpected answer: {other:?}"))),
        }
    }
}

/// Another password for nodes that are to come.
pub fn passwd(context: &Context, password_file: Option<&Path>) -> Outcome {
    let mut link = context.link()?.sealed();
    // Before anybody types: is there a password, and may this node change it?
    if nodes(&mut link)?.is_empty() {
        let cluster = context.cluster()?;
        return Err(format!("cluster '{cluster}' has no password: it was made without one"));
    }
    let password = new_password("Please enter new password for cluster: ", password_file)?;
    link.ask(&MdsRequest::SetPassword(Box::new(new_digest(&password)?)))?;
    println!("The password was changed. Nodes that are authenticated stay so.");
    Ok(())
}

fn nodes(link: &mut crate::mds_link::MdsLink) -> Outcome<Vec<NodeInfo>> {
    match link.ask(&MdsRequest::ListNodes)? {
        MdsReply::Nodes { nodes } => Ok(nodes),
        _ => Err("unexpected answer of the metadata server".into()),
    }
}

pub fn list_nodes(context: &Context) -> Outcome {
    let nodes = nodes(&mut context.link()?)?;
    if context.json {
        return crate::print_json(&nodes);
    }
    if nodes.is_empty() {
        println!("Cluster '{}' has no password: every node belongs to it.", context.cluster()?);
        return Ok(());
    }
    let me = Credentials::load(&context.etc, context.cluster()?)?.node_id();
    let mut rows = table(&["NODE", "NAME", "STATE", "CONNECTIONS", "ADDED"]);
    for n in &nodes {
        let state = match (n.taken_out, n.connections, n.renewed) {
            (true, ..) => "taken out",
            (false, 0, true) => "away",
            (false, 0, false) => "away, old key",
            (false, _, true) => "connected",
            (false, _, false) => "connected, old key",
        };
        let here = if me == Some(n.node) { "*" } else { "" };
        let number = format!("{}{here}", n.node);
        rows.add_row([number, n.name.clone(), state.into(), n.connections.to_string(), time(n.added_ms)]);
    }
    println!("{rows}");
    if me.is_some() {
        println!("* this node");
    }
    Ok(())
}

#[derive(clap::Args)]
pub struct RotateKey {
    /// The new key, an Ed25519 key in PEM, instead of one that is made here.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["finish", "cancel"])]
    authority: Option<PathBuf>,
    /// Gives the old key up: certificates without the new one are worth nothing from then on.
    #[arg(long, conflicts_with = "cancel")]
    finish: bool,
    /// With --finish, even if nodes have no certificate by the new key: they must be authenticated anew.
    #[arg(long, requires = "finish")]
    force: bool,
    /// Gives the new key up again.
    #[arg(long)]
    cancel: bool,
}

/// A step in the change of the key that certificates are signed with.
pub fn rotate_key(context: &Context, arguments: &RotateKey) -> Outcome {
    let cluster = context.cluster()?;
    let mut link = context.link()?.sealed();
    let step = match (arguments.finish, arguments.cancel) {
        (true, _) => KeyStep::Finish { force: arguments.force },
        (_, true) => KeyStep::Cancel,
        _ => {
            let given = arguments.authority.as_deref().map(read_authority).transpose()?;
            KeyStep::Begin(Box::new(given.unwrap_or_else(|| Authority::new(shards::host::random_bytes()))))
        }
    };
    let begins = matches!(step, KeyStep::Begin(_));
    link.ask(&MdsRequest::ChangeKey(step))?;
    // A new connection sees the new keys and fetches this node's certificate.
    context.link()?.ask(&MdsRequest::ListNodes).ok();
    match (begins, arguments.finish) {
        (true, _) => println!(
            "Cluster '{cluster}' has a new key beside the old one. Nodes get their certificates by it while services and mounts \
             run there; on a host without any run 'pstorage -c {cluster} list-nodes' once. When list-nodes shows no old key any \
             more: pstorage -c {cluster} rotate-key --finish"
        ),
        (_, true) => println!("The old key of cluster '{cluster}' is worth nothing any more."),
        _ => println!("Cluster '{cluster}' keeps the key it had."),
    }
    Ok(())
}

pub fn deauth_node(context: &Context, node: u32) -> Outcome {
    context.link()?.ask(&MdsRequest::TakeOut { node: NodeId(node) })?;
    println!("Node {node} was taken out of cluster '{}': its connections end.", context.cluster()?);
    Ok(())
}
