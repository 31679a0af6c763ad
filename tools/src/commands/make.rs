//! `make-mds`, `add-mds`, `rm-mds`, `make-cs`.

use super::services;
use crate::mds_link::MdsLink;
use crate::{Context, Outcome};
use engine::control::{CacheControl, CsControl};
use mds::control::{MdsControl, MdsPeer, new_uuid};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use wire::MdsId;
use wire::auth::Authority;
use wire::mds_api::{MdsReply, MdsRequest};

/// `IP` or `IP:PORT`.
pub fn parse_addr(text: &str) -> Outcome<SocketAddr> {
    if let Ok(addr) = text.parse() {
        return Ok(addr);
    }
    let ip: IpAddr = text
        .parse()
        .map_err(|_| format!("'{text}' is not IP or IP:PORT, such as 10.30.100.101 (names won't do)"))?;
    Ok(SocketAddr::new(ip, mds::control::DEFAULT_PORT))
}

/// The first metadata server, and with it the cluster.
pub fn make_first_mds(
    context: &Context,
    addr: SocketAddr,
    dir: &Path,
    password: Option<&str>,
    authority: Option<Authority>,
) -> Outcome {
    let cluster = context.cluster()?;
    let peer = MdsPeer::at(MdsId(1), addr).map_err(|e| e.to_string())?;
    mds::control::check_free(dir).map_err(|e| e.to_string())?;
    refuse_known_cluster(context)?;
    let control = MdsControl::first_quorum(cluster, new_uuid(), MdsId(1), &[peer]);
    let found = |password| super::auth::found(cluster, password, authority);
    let founding = password.map(found).transpose()?;
    let foundation = founding.as_ref().map(|(foundation, _)| foundation);
    mds::control::create(dir, &control, foundation).map_err(|e| e.to_string())?;
    services::register(context, dir)?;
    if let Some((_, credentials)) = &founding {
        super::auth::store_key(context, credentials)?;
    }
    context.add_to_bs_list(&[addr])?;
    println!(
        "MDS#1 of cluster '{cluster}' made in {}. Start it: pstorage-mdsd -r {}",
        dir.display(),
        dir.display()
    );
    Ok(())
}

/// A second cluster of the same name would mix up its servers and overwrite the key of the first.
fn refuse_known_cluster(context: &Context) -> Outcome {
    let cluster = context.cluster()?;
    for path in [context.bs_list_path()?, context.cluster_dir()?.join(wire::auth::KEY_FILE)] {
        if path.exists() {
            return Err(format!(
                "this machine belongs to a cluster '{cluster}' already ({} is there). For one more metadata server of \
                 it use add-mds; for a new cluster take another name, or remove {} if the old one is gone",
                path.display(),
                context.cluster_dir()?.display()
            ));
        }
    }
    Ok(())
}

/// One more metadata server for a running cluster.
pub fn add_mds(context: &Context, addr: SocketAddr, dir: &Path, bootstrap: &[SocketAddr]) -> Outcome {
    let cluster = context.cluster()?;
    let raft_addr = mds::control::raft_addr_of(addr).map_err(|e| e.to_string())?;
    // Nothing that can fail here is left for after the cluster counts on the new server.
    mds::control::make_ready(dir).map_err(|e| e.to_string())?;
    let mut link = context.link_by(bootstrap)?;
    let MdsReply::Mds { id } = link.ask(&MdsRequest::AddMds { addr, raft_addr })? else {
        return Err("unexpected answer of the metadata server".into());
    };
    let made = make_joining(&mut link, cluster, MdsPeer { id, addr, raft_addr }, dir);
    if let Err(why) = made {
        let after = match link.ask(&MdsRequest::RemoveMds { id }) {
            Ok(_) => "The cluster is as it was".to_string(),
            Err(e) => {
                format!("MDS#{id} is in the cluster now and will not run, remove it with 'rm-mds {id}' ({e})")
            }
        };
        return Err(format!("{why}. {after}"));
    }
    services::register(context, dir)?;
    context.add_to_bs_list(&[bootstrap, &[addr]].concat())?;
    println!(
        "MDS#{id} of cluster '{cluster}' made in {}. Start it: pstorage-mdsd -r {}",
        dir.display(),
        dir.display()
    );
    Ok(())
}

/// The directory of a server that the cluster knows already.
fn make_joining(link: &mut MdsLink, cluster: &str, me: MdsPeer, dir: &Path) -> Outcome {
    let mut peers = Vec::new();
    if let MdsReply::Stat(stat) = link.ask(&MdsRequest::ClusterStat)? {
        for info in stat.mds.iter().filter(|m| m.mds != me.id) {
            peers.push(MdsPeer::at(info.mds, info.addr).map_err(|e| e.to_string())?);
        }
    }
    let control = MdsControl::joining(cluster, new_uuid(), me, &peers);
    mds::control::create(dir, &control, None).map_err(|e| e.to_string())
}

pub fn rm_mds(context: &Context, id: u32, dry_run: bool) -> Outcome {
    let mds = MdsId(id.into());
    if dry_run {
        context.link()?.ask(&MdsRequest::MayRemoveMds { id: mds })?;
        println!("MDS#{id} can be removed: those that remain are enough to go on. Nothing was changed.");
        return Ok(());
    }
    context.link()?.ask(&MdsRequest::RemoveMds { id: mds })?;
    println!("MDS#{id} removed. Stop its pstorage-mdsd and delete its directory.");
    Ok(())
}

const LEAST_JOURNAL_BYTES: u64 = shards::journal::SMALLEST_JOURNAL_BYTES * 4;
const BLOCK_BYTES: u64 = wire::BLOCK_BYTES as u64;
const LEAST_CAPACITY_BYTES: u64 = 256 << 20;

pub struct NewCs {
    pub dir: PathBuf,
    pub tier: u8,
    /// room.row.rack, where it is not the host's.
    pub location: Option<String>,
    pub journal_dir: Option<PathBuf>,
    /// Of the whole server.
    pub journal_bytes: Option<u64>,
    pub cache_dir: Option<PathBuf>,
    /// Of the whole server.
    pub cache_bytes: Option<u64>,
    pub ip: Option<IpAddr>,
    pub shards: Option<u16>,
    pub capacity_bytes: Option<u64>,
}

/// A new chunk server.
pub fn make_cs(context: &Context, new: &NewCs) -> Outcome {
    let cs = make_cs_quietly(context, new)?;
    let (cluster, dir) = (context.cluster()?, new.dir.display());
    println!("CS#{cs} of cluster '{cluster}' made in {dir}. Start it: pstorage-csd -r {dir}");
    Ok(())
}

pub fn check_ip(ip: IpAddr) -> Outcome {
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(format!("-a {ip}: name the address that clients and other servers use"));
    }
    Ok(())
}

pub fn make_cs_quietly(context: &Context, new: &NewCs) -> Outcome<wire::CsId> {
    let cluster = context.cluster()?;
    new.ip.map_or(Ok(()), check_ip)?;
    new.location.as_deref().map_or(Ok(()), wire::check_location)?;
    engine::control::check_new(&new.dir).map_err(|e| e.to_string())?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u16;
    let shards = new.shards.unwrap_or(cores).max(1);
    let journal_bytes =
        shard_journal_bytes(new.journal_bytes.unwrap_or(u64::from(shards) * (64 << 20)), shards)?;
    let journals_bytes = journal_bytes * u64::from(shards);
    let journal_dir = new.journal_dir.as_deref().map(|d| ssd_dir(d, journals_bytes, "--journal-size"));
    let journal_dir = journal_dir.transpose()?;
    let cache = new_cache(new.cache_dir.as_deref(), new.cache_bytes, shards)?;
    let journals_here = if new.journal_dir.is_none() { journals_bytes } else { 0 };
    let capacity_bytes = check_room(&new.dir, journals_here, new.capacity_bytes)?;
    let host = shards::host::host_name();
    let host_id = host_id(context)?;
    let reply = context.link()?.ask(&MdsRequest::NewCs { host_id, host: host.clone() })?;
    let MdsReply::NewCs { cs } = reply else { return Err("unexpected answer of the metadata server".into()) };
    let control = CsControl {
        format: engine::control::FORMAT,
        service: "cs".into(),
        cluster: cluster.into(),
        id: cs,
        host_id,
        host,
        tier: new.tier,
        location: new.location.clone(),
        shards,
        ip: new.ip.unwrap_or(IpAddr::from([127, 0, 0, 1])),
        capacity_bytes,
        journal_tag: journal_dir.is_some().then(crate::random_hex::<4>),
        journal_dir,
        journal_bytes,
        cache,
    };
    make_cache_files(&control)?;
    engine::control::create(&new.dir, &control).map_err(|e| e.to_string())?;
    services::register(context, &new.dir)?;
    Ok(cs)
}

/// Bytes of each shard's journal, of `bytes` for all.
pub fn shard_journal_bytes(bytes: u64, shards: u16) -> Outcome<u64> {
    let each = bytes / u64::from(shards);
    if each >= LEAST_JOURNAL_BYTES {
        return Ok(each);
    }
    Err(format!(
        "a journal of {} KiB for each of {shards} shards is too small: --journal-size must be at least {}M",
        each >> 10,
        (u64::from(shards) * LEAST_JOURNAL_BYTES) >> 20
    ))
}

/// Makes a directory on an SSD ready for `bytes` of files that are written directly; returns its full path.
pub fn ssd_dir(dir: &Path, bytes: u64, size_option: &str) -> Outcome<PathBuf> {
    let fail = shards::text::at(&dir);
    std::fs::create_dir_all(dir).map_err(fail)?;
    if !shards::host::supports_direct_io(dir).map_err(fail)? {
        return Err(engine::control::ControlError::NoDirectIo { dir: dir.into() }.to_string());
    }
    let free = free_bytes(dir)?;
    if bytes > free {
        return Err(format!(
            "{}: {} MB are free, too few for {} MB: make room, or ask for less with {size_option}",
            dir.display(),
            free >> 20,
            bytes >> 20
        ));
    }
    dir.canonicalize().map_err(fail)
}

/// A read cache of `bytes` for all shards together, in `dir`.
pub fn new_cache(dir: Option<&Path>, bytes: Option<u64>, shards: u16) -> Outcome<Option<CacheControl>> {
    let (dir, bytes) = match (dir, bytes) {
        (None, None) => return Ok(None),
        (Some(dir), Some(bytes)) => (dir, bytes),
        (Some(_), None) => return Err("--cache: say how large the cache shall be, with --cache-size".into()),
        (None, Some(_)) => return Err("--cache-size: say where the cache shall be, with --cache DIR".into()),
    };
    let each = bytes / u64::from(shards) / BLOCK_BYTES * BLOCK_BYTES;
    if each < engine::cache::SMALLEST_CACHE_BYTES {
        return Err(format!(
            "a read cache of {} KiB for each of {shards} shards is too small: --cache-size must be at least {}M",
            each >> 10,
            (u64::from(shards) * engine::cache::SMALLEST_CACHE_BYTES) >> 20
        ));
    }
    let dir = ssd_dir(dir, bytes, "--cache-size")?;
    Ok(Some(CacheControl { dir, bytes: each, id: shards::host::random_bytes() }))
}

/// Makes the files of a read cache, empty, with all their room.
pub fn make_cache_files(control: &CsControl) -> Outcome {
    let Some(cache) = &control.cache else { return Ok(()) };
    for shard in 0..control.shards {
        let path = control.cache_path(cache, shard);
        let fail = shards::text::at(&path);
        let file = std::fs::File::create(&path).map_err(fail)?;
        let room = nix::fcntl::posix_fallocate(&file, 0, cache.bytes as i64);
        room.map_err(|e| fail(e.into()))?;
        file.sync_all().map_err(fail)?;
    }
    std::fs::File::open(&cache.dir).and_then(|d| d.sync_all()).map_err(shards::text::at(&cache.dir))
}

pub fn free_bytes(dir: &Path) -> Outcome<u64> {
    shards::host::space(dir).map(|(_, free)| free).map_err(shards::text::at(&dir))
}

/// The capacity of a new chunk server in `dir`: the one asked for, if it fits, else nearly all there is.
pub fn check_room(dir: &Path, journals_bytes: u64, asked: Option<u64>) -> Outcome<u64> {
    let free = free_bytes(dir)?;
    let room = free.saturating_sub(journals_bytes) / 100 * 95;
    let capacity = asked.unwrap_or(room);
    if capacity < LEAST_CAPACITY_BYTES && asked.is_some() {
        return Err(format!(
            "a capacity of {} MB is too small: give at least {} MB",
            capacity >> 20,
            LEAST_CAPACITY_BYTES >> 20
        ));
    }
    if capacity < LEAST_CAPACITY_BYTES || capacity > room {
        return Err(format!(
            "{}: {} MB are free, too few for journals of {} MB and {} MB of chunks: make room, take another file \
             system, or ask for less with --capacity",
            dir.display(),
            free >> 20,
            journals_bytes >> 20,
            capacity.max(LEAST_CAPACITY_BYTES) >> 20
        ));
    }
    Ok(capacity)
}

/// Identifies this host for failure domains; made once.
fn host_id(context: &Context) -> Outcome<[u8; 16]> {
    let path = context.etc.join("host_id");
    let fail = shards::text::at(&path);
    if let Ok(text) = std::fs::read_to_string(&path) {
        let digits = text.trim();
        let parsed = u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32);
        return parsed.map(u128::to_be_bytes).ok_or(format!("{}: not 32 hexadecimal digits", path.display()));
    }
    let id: [u8; 16] = shards::host::random_bytes();
    let text = format!("{:032x}\n", u128::from_be_bytes(id));
    shards::ring::replace_file(&path, text.as_bytes()).map_err(fail)?;
    Ok(id)
}
