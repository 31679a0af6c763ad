//! `pstorage`: the one command of administrators.

use clap::{Args, CommandFactory, Parser, Subcommand};
use pstorage_tools::commands::{
    advise, attributes, auth, check, check_flush, clone, configure, dashboard, discover, doctor, explain,
    license, local, make, nbd, remove, report, services, stat, top, trace,
};
use pstorage_tools::conf::Conf;
use pstorage_tools::{Context, Outcome, parse_id, parse_replicas};
use shards::text::parse_size;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

/// Sets up, watches and changes pstorage clusters.
#[derive(Parser)]
#[command(name = "pstorage", version)]
struct Cli {
    /// Name of the cluster.
    #[arg(short = 'c', long = "cluster", env = "PSTORAGE_NAME", global = true, value_parser = wire::parse_cluster_name)]
    cluster: Option<String>,
    /// Directory of keys and settings.
    #[arg(long, env = "PSTORAGE_ETC", default_value = "/etc/pstorage", global = true)]
    etc: PathBuf,
    /// Output for programs.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct LocalShape {
    /// Directory that holds everything.
    dir: PathBuf,
    /// Metadata servers of a new cluster. [default: 3]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=15), allow_negative_numbers = true)]
    mds: Option<u32>,
    /// Chunk servers; more than there are adds some. [default: 3]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64), allow_negative_numbers = true)]
    cs: Option<u32>,
    /// Shards of each new chunk server. [default: 2]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64), allow_negative_numbers = true)]
    shards: Option<u16>,
    /// Replicas of a new cluster, normal:minimum. [default: 3:2, or as many as chunk servers]
    #[arg(long, value_parser = parse_replicas, allow_hyphen_values = true)]
    replicas: Option<(u8, u8)>,
    /// Space of each new chunk server, such as 512M or 20G (bare numbers: GB). [default: 10G, or what there is]
    #[arg(long, alias = "capacity-gb", value_parser = |s: &str| parse_size(s, 1 << 30), allow_hyphen_values = true)]
    capacity: Option<u64>,
}

#[derive(Subcommand)]
enum Local {
    /// Starts a cluster (made first if it isn't there) and mounts it on DIR/mnt.
    ///
    /// Example: pstorage local up /var/tmp/demo --cs 5 --capacity 2G
    Up(LocalShape),
    /// Shows its processes and state.
    Status { dir: PathBuf },
    /// Unmounts and stops it; the data stays.
    Down { dir: PathBuf },
    /// Starts it, stores a disk image, reads it back, compares.
    ///
    /// Example: pstorage local demo /var/tmp/demo --image debian.raw
    Demo {
        #[command(flatten)]
        shape: LocalShape,
        /// Image to store instead of a made one.
        #[arg(long)]
        image: Option<PathBuf>,
    },
}

/// How tables are shown; what is not given is taken from ETC/pstorage.conf.
#[derive(Args)]
struct Look {
    /// No host names.
    #[arg(short = 'n', long = "numeric-addrs")]
    numeric: bool,
    /// Sorts metadata servers by columns, KEY or KEY=inv, with commas between them.
    #[arg(short = 's', long = "mds-sort", value_name = "KEYS")]
    mds_sort: Option<String>,
    /// Sorts chunk servers.
    #[arg(short = 'S', long = "cs-sort", value_name = "KEYS")]
    cs_sort: Option<String>,
    /// Sorts clients.
    #[arg(short = 'O', long = "clnt-sort", value_name = "KEYS")]
    clnt_sort: Option<String>,
}

impl Look {
    /// The settings of the host, with the wishes of this call over them.
    fn conf(self, context: &Context) -> Outcome<Conf> {
        let conf = Conf::read(&context.etc)?;
        Ok(Conf {
            numeric_addrs: conf.numeric_addrs || self.numeric,
            mds_sort: self.mds_sort.or(conf.mds_sort),
            cs_sort: self.cs_sort.or(conf.cs_sort),
            clnt_sort: self.clnt_sort.or(conf.clnt_sort),
            ..conf
        })
    }
}

#[derive(Args)]
struct NewMds {
    /// Address: IP or IP:PORT (default port 2510; the next port is used too).
    #[arg(short = 'a', long = "address", value_name = "IP[:PORT]", value_parser = make::parse_addr)]
    address: SocketAddr,
    /// Directory of the new server.
    #[arg(short = 'r', long = "repository")]
    dir: PathBuf,
    /// A running metadata server, where discovery is not set up.
    #[arg(short = 'b', long = "bootstrap", value_name = "IP[:PORT]", value_parser = make::parse_addr)]
    bootstrap: Vec<SocketAddr>,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a metadata server; with -I the first one, and with it the cluster.
    ///
    /// Example: pstorage -c pcs1 make-mds -I -a 10.30.100.101 -r /pstorage/pcs1-mds -p
    MakeMds {
        /// This is the first server: make the cluster.
        #[arg(short = 'I', long = "init")]
        init: bool,
        #[command(flatten)]
        new: NewMds,
        /// Ask for the cluster's password.
        #[arg(short = 'p', long = "password")]
        password: bool,
        /// Read the password from a file.
        #[arg(long)]
        password_file: Option<PathBuf>,
        /// Sign the certificates of nodes with this key (Ed25519, PEM) instead of with a new one. With a password only.
        #[arg(long, value_name = "FILE")]
        authority: Option<PathBuf>,
    },
    /// Makes one more metadata server for a running cluster.
    ///
    /// Example: pstorage -c pcs1 add-mds -a 10.30.100.102 -r /pstorage/pcs1-mds
    AddMds {
        #[command(flatten)]
        new: NewMds,
    },
    /// Removes a metadata server from the quorum. Refused if those that remain could not go on.
    ///
    /// Example: pstorage -c pcs1 rm-mds 3
    RmMds {
        /// Only say whether it can be removed.
        #[arg(short = 'n', long)]
        dry_run: bool,
        /// Number of the server, as stat shows it.
        #[arg(value_parser = |s: &str| parse_id("MDS", s), allow_negative_numbers = true)]
        id: u32,
    },
    /// Makes a chunk server.
    ///
    /// Example: pstorage -c pcs1 make-cs -r /pstorage/pcs1-cs -t 1 --journal /ssd
    MakeCs {
        /// Directory of the new server.
        #[arg(short = 'r', long = "repository")]
        dir: PathBuf,
        /// Storage tier, 0 to 3.
        #[arg(short = 't', long = "tier", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=3),
              allow_negative_numbers = true)]
        tier: u8,
        /// Where the server stands, for failure domains. [default: that of the host, ETC/location]
        #[arg(long, value_name = "ROOM.ROW.RACK")]
        location: Option<String>,
        /// Directory on an SSD for the write journals.
        #[arg(short = 'j', long = "journal")]
        journal: Option<PathBuf>,
        /// Size of the journals of all shards together, such as 512M or 2G (bare numbers: MB).
        #[arg(short = 's', long = "journal-size", value_name = "SIZE", value_parser = |s: &str| parse_size(s, 1 << 20),
              allow_hyphen_values = true)]
        journal_bytes: Option<u64>,
        /// Directory on an SSD for the read cache.
        #[arg(long, value_name = "DIR")]
        cache: Option<PathBuf>,
        /// Size of the read cache of all shards together, such as 100G (bare numbers: MB).
        #[arg(long = "cache-size", value_name = "SIZE", value_parser = |s: &str| parse_size(s, 1 << 20),
              allow_hyphen_values = true)]
        cache_bytes: Option<u64>,
        /// Address to listen on. [default: 127.0.0.1]
        #[arg(short = 'a', long = "address")]
        ip: Option<IpAddr>,
        /// Shards; fixed for the life of the server. [default: cores]
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256), allow_negative_numbers = true)]
        shards: Option<u16>,
        /// Space for chunks, such as 500G (bare numbers: MB). [default: 95 % of what is free]
        #[arg(long, alias = "capacity-mb", value_name = "SIZE", value_parser = |s: &str| parse_size(s, 1 << 20),
              allow_hyphen_values = true)]
        capacity: Option<u64>,
    },
    /// Removes a chunk server: its replicas are copied elsewhere first, then it leaves the cluster. Refused when they can't be.
    ///
    /// Examples: pstorage -c pcs1 rm-cs --dry-run 1026; pstorage -c pcs1 rm-cs --wait 1026
    RmCs {
        /// Remove it at once, copying nothing; refused if data would be lost.
        #[arg(short = 'f', long)]
        force: bool,
        /// Return when it has been removed, showing progress.
        #[arg(long)]
        wait: bool,
        /// End a removal that goes on: the server stays.
        #[arg(long, short = 'U', conflicts_with_all = ["force", "wait", "dry_run"])]
        cancel: bool,
        /// Only say whether it can be removed, and what would be done.
        #[arg(short = 'n', long, conflicts_with = "wait")]
        dry_run: bool,
        /// Number of the chunk server (CSID in stat).
        #[arg(value_parser = |s: &str| parse_id("CS", s), allow_negative_numbers = true)]
        id: u32,
    },
    /// Changes a chunk server that is stopped: moves, resizes or takes back its journals and read cache, changes its tier,
    /// location or address. Without options it shows what is set.
    ///
    /// Example: pstorage -c pcs1 configure-cs -r /pstorage/pcs1-cs --journal /ssd --journal-size 20G
    ConfigureCs {
        /// Directory of the server.
        #[arg(short = 'r', long = "repository")]
        dir: PathBuf,
        /// Storage tier, 0 to 3.
        #[arg(short = 't', long = "tier", value_parser = clap::value_parser!(u8).range(0..=3),
              allow_negative_numbers = true)]
        tier: Option<u8>,
        /// Where the server stands, for failure domains.
        #[arg(long, value_name = "ROOM.ROW.RACK")]
        location: Option<String>,
        /// The server stands where its host does (ETC/location).
        #[arg(long, conflicts_with = "location")]
        no_location: bool,
        /// Puts the write journals into this directory on an SSD.
        #[arg(short = 'j', long = "journal", value_name = "DIR")]
        journal: Option<PathBuf>,
        /// Takes the write journals back into the server's directory.
        #[arg(long, conflicts_with = "journal")]
        no_journal: bool,
        /// Size of the journals of all shards together, such as 512M or 2G (bare numbers: MB).
        #[arg(short = 's', long = "journal-size", value_name = "SIZE", value_parser = |s: &str| parse_size(s, 1 << 20),
              allow_hyphen_values = true)]
        journal_bytes: Option<u64>,
        /// Puts the read cache into this directory on an SSD.
        #[arg(long, value_name = "DIR")]
        cache: Option<PathBuf>,
        /// Size of the read cache of all shards together, such as 100G (bare numbers: MB).
        #[arg(long = "cache-size", value_name = "SIZE", value_parser = |s: &str| parse_size(s, 1 << 20),
              allow_hyphen_values = true)]
        cache_bytes: Option<u64>,
        /// Takes the read cache away.
        #[arg(long, conflicts_with_all = ["cache", "cache_bytes"])]
        no_cache: bool,
        /// Address to listen on.
        #[arg(short = 'a', long = "address")]
        ip: Option<IpAddr>,
        /// Only show what would be set.
        #[arg(short = 'n', long)]
        dry_run: bool,
    },
    /// Proposes journals and read caches on an SSD for chunk servers, made or to be made, on other disks.
    ///
    /// Example: pstorage advise-configuration --ssd /ssd --cs /pstorage/cs1 --cs /pstorage/cs2
    AdviseConfiguration {
        /// Directory on the SSD.
        #[arg(long, value_name = "DIR")]
        ssd: PathBuf,
        /// Directory of a chunk server, or on the disk that is to hold one.
        #[arg(long = "cs", value_name = "DIR", required = true, num_args = 1..)]
        servers: Vec<PathBuf>,
    },
    /// Authenticates this node by the cluster's password, which is asked for, or read from standard input if that is no terminal.
    ///
    /// Examples: pstorage -c pcs1 auth-node; pstorage -c pcs1 auth-node -b 10.30.100.101 --password-file /root/password
    AuthNode {
        /// Read the password from a file.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// A running metadata server, where discovery is not set up.
        #[arg(short = 'b', long = "bootstrap", value_name = "IP[:PORT]", value_parser = make::parse_addr)]
        bootstrap: Vec<SocketAddr>,
    },
    /// Changes the cluster's password. Nodes that are authenticated stay so.
    ///
    /// Example: pstorage -c pcs1 passwd
    Passwd {
        /// Read the new password from a file.
        #[arg(long)]
        password_file: Option<PathBuf>,
    },
    /// Changes the key that certificates of nodes are signed with, while everything runs.
    ///
    /// Without options it begins: nodes get certificates by the old and the new key, within seconds where services or mounts
    /// run. When list-nodes shows none with the old key, --finish gives the old one up.
    ///
    /// Example: pstorage -c pcs1 rotate-key; pstorage -c pcs1 list-nodes; pstorage -c pcs1 rotate-key --finish
    RotateKey(auth::RotateKey),
    /// Lists the nodes of a cluster with a password.
    ListNodes,
    /// Takes a node out of a cluster with a password: its connections end, and nobody talks to it any more.
    ///
    /// Example: pstorage -c pcs1 deauth-node 7
    DeauthNode {
        /// Number of the node (list-nodes shows it).
        #[arg(value_parser = |s: &str| s.parse::<u32>().map_err(|_| "expected a number, as list-nodes shows it"), allow_negative_numbers = true)]
        id: u32,
    },
    /// Serves a file as a block device (NBD), for qemu and others, without a mount.
    ///
    /// Example: pstorage -c pcs1 nbd /vm1.raw --create 20G --socket /run/vm1.sock
    Nbd(nbd::Arguments),
    /// Gives the cluster a licence. It needs none: without one there are no limits.
    ///
    /// Example: pstorage -c pcs1 load-license -f license.txt
    LoadLicense {
        #[command(flatten)]
        given: license::Given,
    },
    /// Replaces the cluster's licence by a newer one of the same number.
    ///
    /// Example: pstorage -c pcs1 update-license -f license.txt
    UpdateLicense {
        #[command(flatten)]
        given: license::Given,
    },
    /// Shows what the cluster's licence says.
    ViewLicense,
    /// Shows how it stands with the cluster's licence.
    StatLicense,
    /// Finds the clusters of this network by DNS records, DNS zone transfer, Avahi and bs.list; or where the metadata
    /// servers of one are.
    ///
    /// Example: pstorage discover pcs1
    Discover {
        /// Show the addresses of this cluster's metadata servers.
        name: Option<String>,
        /// Say why a method fails.
        #[arg(short, long)]
        verbose: bool,
    },
    /// Shows the state of the cluster.
    ///
    /// Example: pstorage -c pcs1 stat -S free=inv
    Stat {
        #[command(flatten)]
        look: Look,
        /// As XML.
        #[arg(short = 'X', long = "xml")]
        xml: bool,
    },
    /// Lists the servers that were made on this host, of the cluster named or of all, and whether they run.
    ///
    /// Example: pstorage list-services -C
    ListServices {
        /// Ask the clusters too what they know of them.
        #[arg(short = 'C', long = "ask-cluster")]
        ask_cluster: bool,
    },
    /// Shows the state of the cluster live. h shows the keys.
    ///
    /// Example: pstorage -c pcs1 top -S free
    Top {
        #[command(flatten)]
        look: Look,
        /// Milliseconds between two looks at the cluster. [default: 1000]
        #[arg(short = 'T', long = "refresh-time", value_name = "MS", value_parser = clap::value_parser!(u64).range(100..=3_600_000))]
        refresh_ms: Option<u64>,
    },
    /// Serves a page that shows the cluster in a browser and can change nothing: what is wrong and what to do, space, servers, curves,
    /// events.
    ///
    /// Example: pstorage -c pcs1 dashboard, then open http://127.0.0.1:9530/. For other hosts: pstorage -c pcs1 dashboard --listen
    /// 10.30.100.101:9530 --password-file FILE --tls-cert FILE --tls-key FILE
    Dashboard(dashboard::Arguments),
    /// Shows the event log.
    ///
    /// Example: pstorage -c pcs1 get-event -f
    GetEvent {
        /// Go on showing new ones.
        #[arg(short, long)]
        follow: bool,
    },
    /// Compares all replicas of all chunks, reading the data.
    ///
    /// Example: pstorage -c pcs1 check --repair
    Check {
        /// Have damaged replicas filled again.
        #[arg(long)]
        repair: bool,
    },
    /// Tests whether a drive or RAID controller loses flushed data when its power is cut (also pstorage-hwflush-check).
    CheckFlush(check_flush::Arguments),
    /// Looks whether this host, and with -c the cluster, is as it should be, and says what to do where it is not. Changes
    /// nothing. Exit status: 0, all is well; 1, there are warnings; 2, there are errors.
    ///
    /// Example: pstorage -c pcs1 doctor; pstorage doctor /srv/disk1 /srv/disk2
    Doctor {
        /// Directories on disks that servers are to use. (Those of servers made on this host are looked at always.)
        #[arg(value_name = "DIR")]
        dirs: Vec<PathBuf>,
    },
    /// Collects what helps to find out what is wrong, without secrets, in one file: state, settings and events of the cluster; logs,
    /// services, kernel, disks and network of this host; what doctor finds.
    ///
    /// Example: pstorage -c pcs1 report --out /tmp/report.tar.gz
    Report {
        /// Where to write it (.tar.gz). [default: pstorage-report-CLUSTER-HOST-TIME.tar.gz in this directory]
        #[arg(long, short = 'o', value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Tells where something is, why it is there, what is wrong and what happens next: a file (path inside the cluster), a
    /// chunk (its number) or a chunk server (such as CS#3).
    ///
    /// Examples: pstorage -c pcs1 explain /vm1.raw; pstorage -c pcs1 explain CS#3
    Explain {
        /// Path in the cluster, number of a chunk, or a server such as CS#3 or cs3.
        #[arg(value_name = "FILE|CHUNK|CS")]
        what: String,
    },
    /// Reads a piece of a file, and shows where the time of that request went: client, network, chunk server, disk, replicas.
    ///
    /// A file that is open on another host can't be traced so; its mount logs what takes longer than '-o slow=MS'. The
    /// logs of mounts and chunk servers name slow requests by the same trace numbers, such as 17.42.
    ///
    /// Examples: pstorage -c pcs1 trace vm1.raw --write --count 21; pstorage -c pcs1 trace --slow
    Trace(trace::Arguments),
    /// Sets attributes of a file or directory (path inside the cluster): replicas, tier, failure-domain, chunk-size.
    ///
    /// Examples: pstorage -c pcs1 set-attr -R /images replicas=3:2 tier=1; pstorage -c pcs1 set-attr --dry-run /vm1.raw replicas=2
    SetAttr {
        /// Also all that is below the directory now.
        #[arg(short = 'R', long)]
        recursive: bool,
        /// Paths are inside the cluster (they always are, so far).
        #[arg(short = 'p')]
        inside: bool,
        /// Only show what would change.
        #[arg(short = 'n', long)]
        dry_run: bool,
        /// The file or directory.
        path: String,
        /// What to set, such as replicas=3:2.
        #[arg(required = true, value_name = "NAME=VALUE")]
        assignments: Vec<String>,
    },
    /// Shows attributes of a file or directory (path inside the cluster).
    ///
    /// Example: pstorage -c pcs1 get-attr /vm1.raw
    GetAttr {
        /// Paths are inside the cluster (they always are, so far).
        #[arg(short = 'p')]
        inside: bool,
        /// The file or directory.
        path: String,
    },
    /// Shows the cluster's settings: all, or those named.
    ///
    /// Example: pstorage -c pcs1 get-config -v mds.repl.max_rate
    GetConfig {
        /// With what they mean, units, ranges and defaults.
        #[arg(short, long)]
        verbose: bool,
        /// Names of settings.
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
    },
    /// Changes the cluster's settings.
    ///
    /// Example: pstorage -c pcs1 set-config mds.repl.max_rate=100
    SetConfig {
        /// Names and new values; get-config -v lists them with their ranges.
        #[arg(required = true, value_name = "KEY=VALUE")]
        assignments: Vec<String>,
    },
    /// Makes a file that is as another one is now, at once and without a copy (paths inside the cluster). The two share their
    /// data until one of them is written to. Whoever writes to the original stands still for a moment.
    ///
    /// Example: pstorage -c pcs1 clone /images/debian.raw /vm7.raw
    Clone {
        /// The file that is there.
        from: String,
        /// The file to be made.
        to: String,
    },
    /// Ends the leases of a file whose host has died (path inside the cluster). Returns when nobody uses it any more: when the
    /// holder has said so, or after mds.lease.timeout.
    ///
    /// Example: pstorage -c pcs1 revoke /vm1.raw
    Revoke {
        /// Of all files below a directory.
        #[arg(short = 'R', long)]
        recursive: bool,
        /// The file.
        path: String,
    },
    /// A whole cluster on this machine, for evaluation.
    ///
    /// Example: pstorage local up /var/tmp/demo, then pstorage local down /var/tmp/demo
    #[command(subcommand)]
    Local(Local),
    /// Prints a completion script for a shell.
    ///
    /// Example: pstorage completion bash > /etc/bash_completion.d/pstorage
    Completion { shell: clap_complete::Shell },
    /// Writes the manual pages into a directory.
    Man {
        /// Made if it is not there.
        dir: PathBuf,
    },
}

impl Command {
    /// Whether it is about one cluster, which must be named.
    fn is_of_a_cluster(&self) -> bool {
        !matches!(
            self,
            Command::ConfigureCs { .. }
                | Command::AdviseConfiguration { .. }
                | Command::ListServices { .. }
                | Command::Discover { .. }
                | Command::CheckFlush(_)
                | Command::Doctor { .. }
                | Command::Local(_)
                | Command::Completion { .. }
                | Command::Man { .. }
        )
    }
}

fn main() -> ExitCode {
    shards::host::end_with_readers();
    let cli = Cli::parse();
    if cli.cluster.is_none() && cli.command.is_of_a_cluster() {
        let why = "name the cluster: pstorage -c CLUSTER … (or set PSTORAGE_NAME)";
        Cli::command().error(clap::error::ErrorKind::MissingRequiredArgument, why).exit();
    }
    let context = Context { cluster: cli.cluster, etc: cli.etc, json: cli.json };
    match run(&context, cli.command) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("pstorage: {why}");
            ExitCode::FAILURE
        }
    }
}

fn shape_of(s: &LocalShape) -> local::Shape {
    local::Shape { mds: s.mds, cs: s.cs, shards: s.shards, replicas: s.replicas, capacity_bytes: s.capacity }
}

fn run(context: &Context, command: Command) -> Outcome<ExitCode> {
    let done = match command {
        // These say with their exit status what they found.
        Command::CheckFlush(arguments) => return check_flush::check_flush(&arguments, context.json),
        Command::Doctor { dirs } => return doctor::doctor(context, &dirs),
        Command::MakeMds { init: true, new, password, password_file, authority } => {
            if authority.is_some() && !password && password_file.is_none() {
                return Err("--authority is for a cluster with a password: add -p".into());
            }
            let authority = authority.map(|file| auth::read_authority(&file)).transpose()?;
            let prompt = "Please enter password for cluster: ";
            let password = (password || password_file.is_some())
                .then(|| auth::new_password(prompt, password_file.as_deref()))
                .transpose()?;
            make::make_first_mds(context, new.address, &new.dir, password.as_deref(), authority)
        }
        Command::MakeMds { new, .. } | Command::AddMds { new } => {
            make::add_mds(context, new.address, &new.dir, &new.bootstrap)
        }
        Command::RmMds { id, dry_run } => make::rm_mds(context, id, dry_run),
        Command::MakeCs {
            dir,
            tier,
            location,
            journal,
            journal_bytes,
            cache,
            cache_bytes,
            ip,
            shards,
            capacity,
        } => make::make_cs(
            context,
            &make::NewCs {
                dir,
                tier,
                location,
                journal_dir: journal,
                journal_bytes,
                cache_dir: cache,
                cache_bytes,
                ip,
                shards,
                capacity_bytes: capacity,
            },
        ),
        Command::RmCs { cancel: true, id, .. } => remove::cancel(context, wire::CsId(id)),
        Command::RmCs { force, wait, dry_run, id, .. } => {
            remove::rm_cs(context, wire::CsId(id), remove::Options { force, wait, dry_run })
        }
        Command::ConfigureCs {
            dir,
            tier,
            location,
            no_location,
            journal,
            no_journal,
            journal_bytes,
            cache,
            cache_bytes,
            no_cache,
            ip,
            dry_run,
        } => configure::configure_cs(
            context,
            &dir,
            &configure::Changes {
                tier,
                location,
                no_location,
                journal_dir: journal,
                no_journal,
                journal_bytes,
                cache_dir: cache,
                cache_bytes,
                no_cache,
                ip,
                dry_run,
            },
        ),
        Command::AdviseConfiguration { ssd, servers } => advise::advise(context, &ssd, &servers),
        Command::AuthNode { password_file, bootstrap } => {
            auth::auth_node(context, password_file.as_deref(), &bootstrap)
        }
        Command::Passwd { password_file } => auth::passwd(context, password_file.as_deref()),
        Command::RotateKey(arguments) => auth::rotate_key(context, &arguments),
        Command::ListNodes => auth::list_nodes(context),
        Command::DeauthNode { id } => auth::deauth_node(context, id),
        Command::Nbd(arguments) => nbd::nbd(context, &arguments),
        Command::LoadLicense { given } => license::load(context, &given, false),
        Command::UpdateLicense { given } => license::load(context, &given, true),
        Command::ViewLicense => license::view(context),
        Command::StatLicense => license::stat(context),
        Command::Discover { name: None, verbose } => discover::clusters(context, verbose),
        Command::Discover { name: Some(name), verbose } => discover::servers(context, &name, verbose),
        Command::Stat { look, xml } => stat::stat(context, &look.conf(context)?, xml),
        Command::Top { look, refresh_ms } => {
            let conf = look.conf(context)?;
            top::top(context, Conf { refresh_ms: refresh_ms.unwrap_or(conf.refresh_ms), ..conf })
        }
        Command::Dashboard(arguments) => dashboard::dashboard(context, &arguments),
        Command::GetEvent { follow } => stat::get_event(context, follow),
        Command::Report { out } => report::report(context, out.as_deref()),
        Command::Check { repair } => check::check(context, repair),
        Command::Trace(arguments) => trace::trace(context, &arguments),
        Command::Explain { what } => explain::explain(context, &what),
        Command::SetAttr { recursive, dry_run, path, assignments, .. } => {
            attributes::set_attr(context, &path, &assignments, attributes::SetAttr { recursive, dry_run })
        }
        Command::GetAttr { path, .. } => attributes::get_attr(context, &path),
        Command::ListServices { ask_cluster } => services::list_services(context, ask_cluster),
        Command::GetConfig { verbose, keys } => attributes::get_config(context, &keys, verbose),
        Command::SetConfig { assignments } => attributes::set_config(context, &assignments),
        Command::Clone { from, to } => clone::clone(context, &from, &to),
        Command::Revoke { recursive, path } => attributes::revoke(context, &path, recursive),
        Command::Local(Local::Up(shape)) => local::up(&shape.dir, &shape_of(&shape)),
        Command::Local(Local::Status { dir }) => local::status(&dir, context.json),
        Command::Local(Local::Down { dir }) => local::down(&dir),
        Command::Local(Local::Demo { shape, image }) => {
            local::demo(&shape.dir, &shape_of(&shape), image.as_deref())
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "pstorage", &mut script);
            print!("{}", String::from_utf8_lossy(&script));
            Ok(())
        }
        Command::Man { dir } => {
            std::fs::create_dir_all(&dir).map_err(shards::text::at(&dir))?;
            clap_mangen::generate_to(Cli::command(), &dir).map_err(shards::text::at(&dir))
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}
