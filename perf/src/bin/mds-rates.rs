//! `mds-rates CLUSTER`: how many files a second the metadata service creates, looks up and removes, and how many maps of chunks it
//! gives, with many requests under way, and how long one takes alone. CLUSTER is the directory of a `pstorage local` cluster; `perf/mds.sh` makes one.

use clap::Parser;
use client::call::Call;
use client::{ClientError, Cluster};
use perf::cpu::{Meter, Watched};
use perf::drive::noise_blocks;
use perf::engine::etc;
use perf::text::number;
use shards::BLOCK_BYTES;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use wire::mds_api::{FileKind, MdsReply, MdsRequest};
use wire::{ClientId, FileId, ROOT};

/// Measures the rates of the metadata service.
#[derive(Parser)]
struct Args {
    cluster: PathBuf,
    /// Files of each round.
    #[arg(long, default_value_t = 100_000)]
    files: u64,
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// Client sessions, each on a thread of its own.
    #[arg(long, default_value_t = 2)]
    clients: u64,
    /// Requests under way of each client.
    #[arg(long, default_value_t = 256)]
    depth: u64,
    /// Fail below so many creations a second.
    #[arg(long, default_value_t = 0.0)]
    least_creates: f64,
    /// Fail below so many lookups a second.
    #[arg(long, default_value_t = 0.0)]
    least_lookups: f64,
}

type Answer = (u64, Result<MdsReply, ClientError>);

/// Does `count` requests at a depth, and gives the latency of each.
fn run(
    cluster: &Cluster,
    count: u64,
    depth: u64,
    request: impl Fn(u64) -> MdsRequest,
) -> Result<Vec<Duration>, String> {
    let (tell, hear): (Sender<Answer>, Receiver<Answer>) = channel();
    let mut began = vec![Instant::now(); count as usize];
    let mut took = Vec::with_capacity(count as usize);
    let (mut sent, mut done) = (0, 0);
    while done < count {
        while sent < count && sent - done < depth {
            let (tell, number) = (tell.clone(), sent);
            began[number as usize] = Instant::now();
            let done = Box::new(move |reply| drop(tell.send((number, reply))));
            cluster.submit(Call::Mds { request: request(number), done });
            sent += 1;
        }
        let (number, reply) = hear.recv().map_err(|e| e.to_string())?;
        reply.map_err(|e| format!("request {number}: {e}"))?;
        took.push(began[number as usize].elapsed());
        done += 1;
    }
    Ok(took)
}

fn create(parent: FileId, number: u64) -> MdsRequest {
    MdsRequest::Create {
        client: ClientId(0),
        parent,
        name: format!("file{number:08}"),
        kind: FileKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        symlink_target: String::new(),
        exclusive: true,
        open: false,
    }
}

/// A new file whose first chunk has been written.
fn with_a_chunk(cluster: &Cluster, name: &str) -> client::Result<FileId> {
    let file = cluster.create(name, 0o600, true)?;
    file.write_at(0, noise_blocks(1, BLOCK_BYTES).remove(0))?;
    let id = file.attr()?.file;
    file.close().map(|()| id)
}

struct Bench {
    args: Args,
    clusters: Vec<(Cluster, FileId)>,
    watched: Vec<Watched>,
}

impl Bench {
    /// The rate of all clients together, and says it.
    fn measure(
        &self,
        what: &str,
        count: u64,
        depth: u64,
        clients: usize,
        request: impl Fn(FileId, u64) -> MdsRequest + Sync,
    ) -> Result<f64, String> {
        let meter = Meter::start(&self.watched);
        let began = Instant::now();
        let request = &request;
        let all: Result<Vec<Vec<Duration>>, String> = std::thread::scope(|scope| {
            let one = |(cluster, directory): &(Cluster, FileId)| {
                let (cluster, directory) = (cluster.clone(), *directory);
                scope.spawn(move || run(&cluster, count, depth, |number| request(directory, number)))
            };
            let threads: Vec<_> = self.clusters.iter().take(clients).map(one).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let mut took: Vec<Duration> = all?.concat();
        let rate = took.len() as f64 / began.elapsed().as_secs_f64();
        took.sort_unstable();
        let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
        let used = meter.stop();
        let each = |time: Duration| time.as_secs_f64() * 1e6 / took.len() as f64;
        let servers = used.watched.iter().filter(|(name, _)| name.starts_with("mds"));
        let servers: Vec<String> = servers.map(|(_, time)| format!("{:.1}", each(*time))).collect();
        let cpu = format!("CPU us each: {} servers, {:.1} clients", servers.join(" + "), each(used.own));
        println!(
            "{what:28} {:>9}/s   {:>7} us median {:>8} us p99 {:>9} us longest   {cpu}",
            number(rate),
            number(at(0.5)),
            number(at(0.99)),
            number(at(1.0))
        );
        Ok(rate)
    }
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    let mut clusters = Vec::new();
    for client in 0..args.clients {
        let cluster = Cluster::connect(client::setup::load(&etc(&args.cluster), "local")?)
            .map_err(|e| e.to_string())?;
        let name = format!("rates{client}.{}", std::process::id());
        let directory = cluster.mkdir(&name, 0o755).map_err(|e| e.to_string())?.file;
        clusters.push((cluster, directory));
    }
    let watched = Watched::of_local_cluster(&args.cluster)?;
    let (files, rounds, depth, all) = (args.files, args.rounds, args.depth, args.clients as usize);
    let (least_creates, least_lookups) = (args.least_creates, args.least_lookups);
    let mapped = format!("mapped.{}", std::process::id());
    let file = with_a_chunk(&clusters[0].0, &mapped).map_err(|e| format!("/{mapped}: {e}"))?;
    let bench = Bench { args, clusters, watched };
    let (mut creates, mut lookups) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        creates.push(bench.measure("create", files, depth, all, create)?);
        let lookup = |parent, number: u64| {
            let number = number.wrapping_mul(7919) % files;
            MdsRequest::Lookup { parent, name: format!("file{number:08}") }
        };
        lookups.push(bench.measure("lookup", files, depth, all, lookup)?);
        let map = |_, _| MdsRequest::Map { file, first: 0, count: 1 };
        bench.measure("map of a chunk", files, depth, all, map)?;
        bench.measure("lookup, one at a time", 5000.min(files), 1, 1, lookup)?;
        let unlink = |parent, number| MdsRequest::Unlink {
            client: ClientId(0),
            parent,
            name: format!("file{number:08}"),
            directory: false,
        };
        bench.measure("remove", files, depth, all, unlink)?;
        bench.measure("create, one at a time", 1000.min(files), 1, 1, create)?;
        bench.measure("remove, one at a time", 1000.min(files), 1, 1, unlink)?;
    }
    bench.clusters[0].0.unlink(&mapped).map_err(|e| format!("/{mapped}: {e}"))?;
    let names: Vec<String> =
        (0..bench.args.clients).map(|client| format!("rates{client}.{}", std::process::id())).collect();
    for ((cluster, _), name) in bench.clusters.into_iter().zip(names) {
        cluster
            .mds(MdsRequest::Unlink { client: ClientId(0), parent: ROOT, name, directory: true })
            .map_err(|e| e.to_string())?;
        cluster.close().map_err(|e| e.to_string())?;
    }
    let median = |rates| perf::engine::median(rates, |rate: &f64| *rate);
    let (creates, lookups) = (median(creates), median(lookups));
    println!(
        "median of {rounds} rounds: {} creations, {} lookups a second",
        number(creates),
        number(lookups)
    );
    if creates < least_creates || lookups < least_lookups {
        return Err(format!("at least {least_creates} and {least_lookups} are wanted"));
    }
    Ok(())
}
