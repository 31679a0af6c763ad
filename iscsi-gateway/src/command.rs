//! The subcommands of `pstorage-iscsi`: what administrators do with targets. Records are changed in the cluster, from any host; what is
//! served at the moment is the business of the daemon on its host.

use crate::control::{self, Reply, Request};
use crate::gateway::GatewayState;
use crate::record::{
    AccountRecord, Lun, MAX_LUNS, Target, check_iqn, check_secret, check_user, parse_portal,
};
use crate::store::Store;
use crate::{Error, Result};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use iscsi::scsi::BlockSize;
use serde_json::{Value, json};
use shards::text::parse_size;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use wire::license::size_text;

fn size(text: &str) -> std::result::Result<u64, String> {
    parse_size(text, 1 << 20)
}

#[derive(Args)]
pub struct NewLun {
    /// Size, such as 100G (bare numbers: MB). It takes room only as it is written.
    #[arg(short = 's', long, value_parser = size, allow_hyphen_values = true)]
    size: u64,
    /// Logical blocks of 512 or 4096 bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 512, value_parser = block_bytes)]
    block_size: u32,
    /// What initiators see as the vendor: at most 8 characters.
    #[arg(long, default_value = "PSTORAGE", value_parser = |s: &str| words(s, 8))]
    vendor: String,
    /// What they see as the product: at most 16 characters.
    #[arg(long, default_value = "LUN", value_parser = |s: &str| words(s, 16))]
    product: String,
    /// Serial number, by which initiators know the LUN for ever. [default: made at random]
    #[arg(long, value_parser = |s: &str| words(s, 36))]
    serial: Option<String>,
}

fn block_bytes(text: &str) -> std::result::Result<u32, String> {
    let bytes = text.parse().ok().filter(|bytes| BlockSize::from_bytes(*bytes).is_some());
    bytes.ok_or_else(|| "512 or 4096 expected".into())
}

fn words(text: &str, most: usize) -> std::result::Result<String, String> {
    let fits = (1..=most).contains(&text.len()) && text.bytes().all(|b| (0x20..0x7f).contains(&b));
    if fits { Ok(text.into()) } else { Err(format!("1 to {most} printable ASCII characters expected")) }
}

#[derive(Args)]
pub struct OfTarget {
    /// Name of the target, or the part behind the prefix.
    #[arg(short = 't', long = "target", value_name = "IQN")]
    target: String,
}

/// How data is deleted. Scripts, which have no terminal, are not asked: those written for the original go on working.
#[derive(Args)]
pub struct Deletion {
    /// Do not ask.
    #[arg(short = 'y', long)]
    yes: bool,
    /// Only say what would be deleted.
    #[arg(short = 'n', long)]
    dry_run: bool,
}

impl Deletion {
    /// Whether to go on. `what` is to be deleted.
    fn is_agreed(&self, what: &str) -> Result<bool> {
        if self.dry_run {
            println!("Would delete {what}. Nothing was changed.");
            return Ok(false);
        }
        let stdin = std::io::stdin();
        if self.yes || !stdin.is_terminal() {
            return Ok(true);
        }
        eprint!("Delete {what}? The data is lost then. yes or no: ");
        let mut answer = String::new();
        stdin.read_line(&mut answer).map_err(|e| Error::Refused(format!("reading the answer: {e}")))?;
        match answer.trim() {
            "yes" | "y" => Ok(true),
            _ => Error::refused("nothing was deleted"),
        }
    }
}

#[derive(Args)]
pub struct Secret {
    /// Read the secret from standard input, one line, in place of asking for it.
    #[arg(long)]
    secret_stdin: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// Makes a target with one LUN, on this host; prints its name.
    ///
    /// Example: pstorage-iscsi -c pcs1 create -n vm1 -s 100G -a 10.0.0.5
    Create {
        /// Name: becomes IQN_PREFIX:NAME.
        #[arg(short = 'n', long)]
        name: String,
        /// Address that initiators connect to, of this host; may be repeated.
        #[arg(short = 'a', long = "address", value_name = "IP[:PORT]", required = true, value_parser = parse_portal)]
        portals: Vec<SocketAddr>,
        #[command(flatten)]
        lun: NewLun,
    },
    /// Shows targets.
    List {
        #[arg(short = 't', long = "target", value_name = "IQN")]
        target: Option<String>,
    },
    /// Serves a target on this host, and whenever its gateway starts.
    ///
    /// Example: pstorage-iscsi -c pcs1 start -t vm1
    Start(OfTarget),
    /// Ends that; its initiators lose their disk.
    Stop(OfTarget),
    /// Makes this host the one that serves a target.
    ///
    /// Example: pstorage-iscsi -c pcs1 register -t vm1 -f
    Register {
        #[command(flatten)]
        of: OfTarget,
        /// Addresses here. [default: as they are]
        #[arg(short = 'a', long = "address", value_name = "IP[:PORT]", value_parser = parse_portal)]
        portals: Vec<SocketAddr>,
        /// The host that had it is dead: take its files away from it, so that it can't write any more.
        #[arg(short = 'f', long)]
        force: bool,
    },
    /// Takes a stopped target from its host.
    Unregister(OfTarget),
    /// Deletes a stopped target with its LUNs and all their data. On a terminal it asks before.
    ///
    /// Example: pstorage-iscsi -c pcs1 delete -t vm1 --dry-run
    Delete {
        #[command(flatten)]
        of: OfTarget,
        #[command(flatten)]
        deletion: Deletion,
    },
    /// Changes who may log in to a target, or its addresses.
    ///
    /// Example: pstorage-iscsi -c pcs1 set -t vm1 -u alice
    Set {
        #[command(flatten)]
        of: OfTarget,
        /// Account that may log in (CHAP); may be repeated, and replaces those before.
        #[arg(short = 'u', long = "user")]
        users: Vec<String>,
        /// Everybody may log in without a secret.
        #[arg(long, conflicts_with = "users")]
        no_users: bool,
        /// Account with which the target proves itself to initiators that ask for it.
        #[arg(long)]
        mutual_user: Option<String>,
        #[arg(long, conflicts_with = "mutual_user")]
        no_mutual_user: bool,
        /// Initiator that may log in; may be repeated, and replaces those before.
        #[arg(long = "initiator", value_name = "IQN")]
        initiators: Vec<String>,
        /// Any initiator may.
        #[arg(long, conflicts_with = "initiators")]
        any_initiator: bool,
        /// Addresses (of a stopped target).
        #[arg(short = 'a', long = "address", value_name = "IP[:PORT]", value_parser = parse_portal)]
        portals: Vec<SocketAddr>,
    },
    /// Adds a LUN to a stopped target.
    ///
    /// Example: pstorage-iscsi -c pcs1 lun-add -t vm1 -s 100G
    LunAdd {
        #[command(flatten)]
        of: OfTarget,
        /// Number of the LUN. [default: the next free one]
        #[arg(short = 'l', long)]
        lun: Option<u16>,
        #[command(flatten)]
        new: NewLun,
    },
    /// Makes a LUN larger, also while it is served.
    ///
    /// Example: pstorage-iscsi -c pcs1 lun-grow -t vm1 -l 0 -s 200G
    LunGrow {
        #[command(flatten)]
        of: OfTarget,
        #[arg(short = 'l', long)]
        lun: u16,
        /// The size it shall have.
        #[arg(short = 's', long, value_parser = size, allow_hyphen_values = true)]
        size: u64,
    },
    /// Shows the LUNs of a target.
    LunList(OfTarget),
    /// Deletes a LUN of a stopped target, and its data. On a terminal it asks before.
    ///
    /// Example: pstorage-iscsi -c pcs1 lun-del -t vm1 -l 1
    LunDel {
        #[command(flatten)]
        of: OfTarget,
        #[arg(short = 'l', long)]
        lun: u16,
        #[command(flatten)]
        deletion: Deletion,
    },
    /// Makes an account for CHAP.
    ///
    /// Example: pstorage-iscsi -c pcs1 account-create -u alice
    AccountCreate {
        #[arg(short = 'u', long)]
        user: String,
        #[command(flatten)]
        secret: Secret,
    },
    /// Shows the accounts.
    AccountList,
    /// Changes the secret of an account. Targets that are served take it over when they are set, or started anew.
    AccountSet {
        #[arg(short = 'u', long)]
        user: String,
        #[command(flatten)]
        secret: Secret,
    },
    /// Deletes an account that no target uses.
    AccountDelete {
        #[arg(short = 'u', long)]
        user: String,
    },
    /// Shows what the gateway of this host serves, and to whom.
    State,
}

/// What every subcommand needs.
pub struct Context {
    pub socket: PathBuf,
    pub iqn_prefix: String,
    pub json: bool,
}

impl Context {
    fn iqn(&self, of: &OfTarget) -> Result<String> {
        self.full_name(&of.target)
    }

    fn full_name(&self, name: &str) -> Result<String> {
        let is_whole = ["iqn.", "eui.", "naa."].iter().any(|kind| name.starts_with(kind));
        let iqn = if is_whole { name.to_string() } else { format!("{}:{name}", self.iqn_prefix) };
        check_iqn(&iqn).map(|()| iqn)
    }

    fn ask(&self, request: &Request) -> Result<Reply> {
        control::ask(&self.socket, request)
    }

    fn gateway(&self) -> Result<GatewayState> {
        match self.ask(&Request::State)? {
            Reply::State(state) => Ok(state),
            other => Error::refused(format!("unexpected answer of the gateway: {other:?}")),
        }
    }

    /// Name of this host, as its gateway calls it.
    fn host(&self) -> String {
        self.gateway().map_or_else(|_| shards::host::host_name(), |state| state.host)
    }

    /// Tells the gateway here, if there is one, that a record was changed.
    fn refresh(&self, iqn: &str) {
        let _ = self.ask(&Request::Refresh { iqn: iqn.into() }); // Nobody serves it here: nothing to tell.
    }

    /// Prints a value for programs, or lines for people.
    fn say(&self, value: Value, text: impl FnOnce() -> String) {
        match self.json {
            true => println!("{value:#}"),
            false => println!("{}", text()),
        }
    }
}

/// For subcommands that need no cluster.
pub fn run_alone(context: &Context, command: &Command) -> Option<Result> {
    match command {
        Command::State => Some(state(context)),
        _ => None,
    }
}

pub fn run(context: &Context, store: &Store, command: Command) -> Result {
    match command {
        Command::Create { name, portals, lun } => create(context, store, &name, portals, lun),
        Command::List { target } => list(context, store, target.as_deref()),
        Command::Start(of) => {
            let iqn = context.iqn(&of)?;
            context.ask(&Request::Start { iqn: iqn.clone() })?;
            context.say(json!({"iqn": iqn, "status": "started"}), || format!("{iqn} is served."));
            Ok(())
        }
        Command::Stop(of) => stop(context, store, &context.iqn(&of)?),
        Command::Register { of, portals, force } => {
            register(context, store, &context.iqn(&of)?, portals, force)
        }
        Command::Unregister(of) => {
            let mut locked = store.lock(&context.iqn(&of)?)?;
            locked.target.check_stopped()?;
            locked.target.host = None;
            locked.save()
        }
        Command::Delete { of, deletion } => {
            let iqn = context.iqn(&of)?;
            let target = store.target(&iqn)?;
            target.check_stopped()?;
            match deletion
                .is_agreed(&format!("target {iqn} with {} LUNs and all their data", target.luns.len()))?
            {
                true => store.delete(&iqn),
                false => Ok(()),
            }
        }
        Command::Set {
            of,
            users,
            no_users,
            mutual_user,
            no_mutual_user,
            initiators,
            any_initiator,
            portals,
        } => {
            let iqn = context.iqn(&of)?;
            users.iter().chain(&mutual_user).try_for_each(|user| store.account(user).map(drop))?;
            initiators.iter().try_for_each(|name| check_iqn(name))?;
            let mut locked = store.lock(&iqn)?;
            let target = &mut locked.target;
            if !portals.is_empty() {
                target.check_stopped()?;
                target.portals = portals;
            }
            replace(&mut target.users, users, no_users);
            replace(&mut target.initiators, initiators, any_initiator);
            if mutual_user.is_some() || no_mutual_user {
                target.mutual_user = mutual_user;
            }
            locked.save()?;
            context.refresh(&iqn);
            Ok(())
        }
        Command::LunAdd { of, lun, new } => {
            let iqn = context.iqn(&of)?;
            let mut locked = store.lock(&iqn)?;
            let target = &mut locked.target;
            target.check_stopped()?;
            let is_free = |n: &u16| *n < MAX_LUNS && target.luns.iter().all(|l| l.lun != *n);
            let number = match lun {
                Some(lun) => Some(lun).filter(is_free),
                None => (0..MAX_LUNS).find(is_free),
            };
            let Some(number) = number else {
                let taken = lun.filter(|lun| *lun < MAX_LUNS).map_or_else(String::new, |lun| {
                    format!("{iqn} has a LUN {lun} already: 'lun-list' shows all. ")
                });
                return Error::refused(format!(
                    "{taken}LUN numbers go from 0 to {}, and each once",
                    MAX_LUNS - 1
                ));
            };
            let size_bytes = check_size(&new)?;
            store.create_lun(&iqn, number, size_bytes)?;
            target.luns.push(new_lun(number, new));
            target.luns.sort_by_key(|l| l.lun);
            locked.save()?;
            context.say(json!({"iqn": iqn, "lun": number}), || format!("LUN {number}"));
            Ok(())
        }
        Command::LunGrow { of, lun, size } => grow(context, store, &context.iqn(&of)?, lun, size),
        Command::LunList(of) => {
            let target = store.target(&context.iqn(&of)?)?;
            let luns =
                target.luns.iter().map(|lun| lun_json(store, &target, lun)).collect::<Result<Vec<_>>>()?;
            context.say(json!(luns), || lun_table(&luns));
            Ok(())
        }
        Command::LunDel { of, lun, deletion } => {
            let iqn = context.iqn(&of)?;
            let target = store.target(&iqn)?;
            target.check_stopped()?;
            target.lun(lun)?;
            let size = size_text(store.lun_size_bytes(&iqn, lun)?);
            if !deletion.is_agreed(&format!("LUN {lun} ({size}) of {iqn} and its data"))? {
                return Ok(());
            }
            // Anew: meanwhile another may have changed it.
            let mut locked = store.lock(&iqn)?;
            locked.target.check_stopped()?;
            locked.target.lun(lun)?;
            locked.target.luns.retain(|l| l.lun != lun);
            locked.save()?;
            store.delete_lun(&iqn, lun)
        }
        Command::AccountCreate { user, secret } => {
            check_user(&user)?;
            if store.account(&user).is_ok() {
                return Error::refused(format!(
                    "there is an account '{user}' already: 'account-set' changes its secret"
                ));
            }
            store.set_account(&AccountRecord { secret: read_secret(&secret)?, user })
        }
        Command::AccountSet { user, secret } => {
            store.account(&user)?;
            store.set_account(&AccountRecord { secret: read_secret(&secret)?, user })
        }
        Command::AccountList => {
            let users = store.accounts()?;
            context.say(json!(users), || users.join("\n"));
            Ok(())
        }
        Command::AccountDelete { user } => {
            store.account(&user)?;
            let uses = |t: &Target| t.users.contains(&user) || t.mutual_user.as_ref() == Some(&user);
            match store.targets()?.iter().find(|target| uses(target)) {
                Some(target) => Error::refused(format!(
                    "{} uses account '{user}': take it away with 'pstorage-iscsi set' first",
                    target.iqn
                )),
                None => store.delete_account(&user),
            }
        }
        Command::State => state(context),
    }
}

/// A list that is replaced if another is given, or emptied.
fn replace(list: &mut Vec<String>, new: Vec<String>, empties: bool) {
    if !new.is_empty() || empties {
        *list = new;
    }
}

fn read_secret(how: &Secret) -> Result<String> {
    let failed = |error: std::io::Error| Error::Refused(format!("reading the secret: {error}"));
    let secret = if how.secret_stdin {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map_err(failed)?;
        line.trim_end_matches(['\r', '\n']).to_string()
    } else {
        rpassword::prompt_password("Secret (at least 12 characters): ").map_err(|error| {
            Error::Refused(format!(
                "no terminal to ask for the secret ({error}): give it with --secret-stdin"
            ))
        })?
    };
    check_secret(&secret).map(|()| secret)
}

fn check_size(new: &NewLun) -> Result<u64> {
    if new.size >= 1 << 20 && new.size % u64::from(new.block_size) == 0 {
        return Ok(new.size);
    }
    Error::refused(format!("--size: a LUN has at least 1 MB, and whole blocks of {} bytes", new.block_size))
}

fn new_lun(lun: u16, new: NewLun) -> Lun {
    let random = || shards::host::random_bytes::<12>().iter().map(|b| format!("{b:02x}")).collect();
    Lun {
        lun,
        block_bytes: new.block_size,
        vendor: new.vendor,
        product: new.product,
        serial: new.serial.unwrap_or_else(random),
        read_only: false,
    }
}

fn create(context: &Context, store: &Store, name: &str, portals: Vec<SocketAddr>, lun: NewLun) -> Result {
    let iqn = context.full_name(name)?;
    let size_bytes = check_size(&lun)?;
    let target = Target {
        iqn: iqn.clone(),
        host: Some(context.host()),
        started: false,
        portals,
        luns: vec![new_lun(0, lun)],
        users: Vec::new(),
        mutual_user: None,
        initiators: Vec::new(),
    };
    store.create(&target)?;
    if let Err(error) = store.create_lun(&iqn, 0, size_bytes) {
        let _ = store.delete(&iqn); // A target that is half made is none.
        return Err(error);
    }
    context.say(json!({ "iqn": iqn }), || iqn.clone());
    Ok(())
}

fn stop(context: &Context, store: &Store, iqn: &str) -> Result {
    let target = store.target(iqn)?;
    if target.started && target.host.as_deref() != Some(&*context.host()) {
        target.check_stopped()?;
    }
    context.ask(&Request::Stop { iqn: iqn.into() })?;
    context.say(json!({"iqn": iqn, "status": "stopped"}), || format!("{iqn} is stopped."));
    Ok(())
}

fn register(context: &Context, store: &Store, iqn: &str, portals: Vec<SocketAddr>, force: bool) -> Result {
    let host = context.host();
    let mut locked = store.lock(iqn)?;
    let target = &mut locked.target;
    if target.host.as_ref() != Some(&host) || force {
        if target.started && !force {
            let other = target.host.as_deref().unwrap_or("?");
            return Error::refused(format!(
                "{iqn} is started on host {other}: stop it there, or, if that host is dead, run 'pstorage-iscsi register -f -t {iqn}'"
            ));
        }
        if force {
            store.revoke(target)?;
        }
        target.started = false;
        target.host = Some(host.clone());
    }
    if !portals.is_empty() {
        target.check_stopped()?;
        target.portals = portals;
    }
    locked.save()?;
    context.say(json!({"iqn": iqn, "host": host}), || format!("{iqn} is on host {host}."));
    Ok(())
}

fn grow(context: &Context, store: &Store, iqn: &str, lun: u16, size_bytes: u64) -> Result {
    let target = store.target(iqn)?;
    let block_bytes = u64::from(target.lun(lun)?.block_bytes);
    let now_bytes = store.lun_size_bytes(iqn, lun)?;
    if size_bytes <= now_bytes || size_bytes % block_bytes != 0 {
        return Error::refused(format!(
            "LUN {lun} of {iqn} has {}: it can only be made larger, by whole blocks",
            size_text(now_bytes)
        ));
    }
    let request = Request::Grow { iqn: iqn.into(), lun, size_bytes };
    match context.ask(&request) {
        Ok(Reply::Done) => Ok(()),
        Err(error) if target.started && target.host.as_deref() == Some(&*context.host()) => Err(error),
        Ok(_) | Err(_) => {
            target.check_stopped()?;
            store.grow_lun(iqn, lun, size_bytes)
        }
    }
}

// Showing.

fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(heads);
    table
}

fn list(context: &Context, store: &Store, target: Option<&str>) -> Result {
    let targets = match target {
        Some(name) => vec![store.target(&context.full_name(name)?)?],
        None => store.targets()?,
    };
    let status = |t: &Target| match (&t.host, t.started) {
        (None, _) => "unregistered",
        (Some(_), true) => "started",
        (Some(_), false) => "stopped",
    };
    let all: Vec<Value> = targets
        .iter()
        .map(|t| {
            let mut value = json!(t);
            value["status"] = json!(status(t));
            value
        })
        .collect();
    context.say(json!(all), || {
        if targets.is_empty() {
            return "There are no targets: 'pstorage-iscsi create' makes one.".into();
        }
        let mut rows = table(&["IQN", "STATUS", "LUNs", "HOST", "PORTAL(s)"]);
        for t in &targets {
            let portals: Vec<String> = t.portals.iter().map(SocketAddr::to_string).collect();
            let host = t.host.clone().unwrap_or_else(|| "-".into());
            rows.add_row([
                t.iqn.clone(),
                status(t).into(),
                t.luns.len().to_string(),
                host,
                portals.join(","),
            ]);
        }
        rows.to_string()
    });
    Ok(())
}

fn lun_json(store: &Store, target: &Target, lun: &Lun) -> Result<Value> {
    let mut value = json!(lun);
    value["size_bytes"] = json!(store.lun_size_bytes(&target.iqn, lun.lun)?);
    value["path"] = json!(store.lun_path(&target.iqn, lun.lun));
    Ok(value)
}

fn lun_table(luns: &[Value]) -> String {
    let mut rows = table(&["LUN", "SIZE", "BLOCK", "VENDOR", "PRODUCT", "SERIAL", "FILE"]);
    for lun in luns {
        let word = |key: &str| lun[key].as_str().unwrap_or("-").to_string();
        rows.add_row([
            lun["lun"].to_string(),
            size_text(lun["size_bytes"].as_u64().unwrap_or(0)),
            lun["block_bytes"].to_string(),
            word("vendor"),
            word("product"),
            word("serial"),
            word("path"),
        ]);
    }
    rows.to_string()
}

fn state(context: &Context) -> Result {
    let state = context.gateway()?;
    context.say(json!(state), || {
        if state.targets.is_empty() {
            return format!("The gateway of host {} serves no target.", state.host);
        }
        let mut rows =
            table(&["IQN", "INITIATOR", "ADDRESS", "USER", "SINCE(s)", "READS", "WRITES", "READ", "WRITTEN"]);
        for t in &state.targets {
            let sums = [
                t.reads.to_string(),
                t.writes.to_string(),
                size_text(t.read_bytes),
                size_text(t.write_bytes),
            ];
            let row = [t.iqn.clone(), "-".into(), "-".into(), "-".into(), "-".into()];
            rows.add_row(row.into_iter().chain(sums));
            for s in &t.sessions {
                let user = s.user.clone().unwrap_or_else(|| "-".into());
                rows.add_row([
                    "",
                    &s.initiator,
                    &s.address.to_string(),
                    &user,
                    &s.seconds.to_string(),
                    "",
                    "",
                    "",
                    "",
                ]);
            }
        }
        rows.to_string()
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_or_whole() {
        let context =
            Context { socket: "/nonexistent".into(), iqn_prefix: "iqn.2026-11.x".into(), json: false };
        assert_eq!(context.full_name("vm1").unwrap(), "iqn.2026-11.x:vm1");
        assert_eq!(context.full_name("iqn.2020-01.y:z").unwrap(), "iqn.2020-01.y:z");
        assert!(context.full_name("VM 1").is_err());
        assert!(context.gateway().unwrap_err().to_string().contains("pstorage-iscsid"));
        assert!(words("", 8).is_err() && words("123456789", 8).is_err() && block_bytes("1024").is_err());
    }
}
