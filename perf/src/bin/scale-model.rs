//! `scale-model`: where clusters of 3 to 3,000 chunk servers with 1 to 1,000 clients saturate. Nothing but arithmetic on costs that were measured
//! on one machine; the defaults are those of docs/scale.md, which says how each was found.

use clap::Parser;
use perf::text::number;

/// Computes where large clusters saturate.
#[derive(Parser)]
struct Args {
    /// CPU us of all chunk servers for a 4 KiB read at depth 32.
    #[arg(long, default_value_t = 9.2)]
    cs_read_us: f64,
    /// CPU us of all chunk servers for a durable 4 KiB write with three replicas at depth 32.
    #[arg(long, default_value_t = 83.0)]
    cs_write_us: f64,
    /// CPU us of all chunk servers for a durable write of 1 MiB with three replicas, and for a read.
    #[arg(long, default_value_t = 1372.0)]
    cs_large_write_us: f64,
    #[arg(long, default_value_t = 362.0)]
    cs_large_read_us: f64,
    /// The same of the client.
    #[arg(long, default_value_t = 7.0)]
    client_read_us: f64,
    #[arg(long, default_value_t = 10.0)]
    client_write_us: f64,
    #[arg(long, default_value_t = 254.0)]
    client_large_write_us: f64,
    #[arg(long, default_value_t = 197.0)]
    client_large_read_us: f64,
    /// CPU us of the master for a heartbeat of a shard, a keep-alive of a client, the map of a chunk, a new file.
    #[arg(long, default_value_t = 10.0)]
    heartbeat_us: f64,
    #[arg(long, default_value_t = 10.0)]
    keep_alive_us: f64,
    #[arg(long, default_value_t = 2.6)]
    map_us: f64,
    #[arg(long, default_value_t = 6.0)]
    create_us: f64,
    /// Shards of a chunk server, a core each.
    #[arg(long, default_value_t = 4.0)]
    shards: f64,
    /// Of each host's port, in each direction.
    #[arg(long, default_value_t = 10.0)]
    port_gbit: f64,
    /// Bytes of a chunk: a client that reads or writes on and on asks for a map for each.
    #[arg(long, default_value_t = 64.0)]
    chunk_mib: f64,
    /// Read requests of 4 KiB at random places for which a map has to be asked: 1 of so many.
    #[arg(long, default_value_t = 100.0)]
    reads_per_map: f64,
}

/// Heartbeats of a shard, and keep-alives of a client, in a second (docs/scale.md).
const HEARTBEATS_PER_S: f64 = 2.0;
const KEEP_ALIVES_PER_S: f64 = 0.5;
const REPLICAS: f64 = 3.0;
/// What TCP and Ethernet leave of a port for payload, with frames of 1,500 bytes: 1,448 of 1,538.
const PAYLOAD: f64 = 0.94;

/// A kind of load: costs of one operation.
struct Load {
    name: &'static str,
    bytes: f64,
    cs_us: f64,
    client_us: f64,
    /// Bytes through the chunk servers' ports together, in the direction that carries more, for each byte of payload.
    cs_port: f64,
    maps: f64,
}

fn main() {
    let a = Args::parse();
    let large_maps = 1.0 / a.chunk_mib;
    let loads = [
        Load {
            name: "4 KiB random read",
            bytes: 4096.0,
            cs_us: a.cs_read_us,
            client_us: a.client_read_us,
            cs_port: 1.0,
            maps: 1.0 / a.reads_per_map,
        },
        Load {
            name: "4 KiB random write",
            bytes: 4096.0,
            cs_us: a.cs_write_us,
            client_us: a.client_write_us,
            cs_port: REPLICAS,
            maps: 1.0 / a.reads_per_map,
        },
        Load {
            name: "1 MiB read",
            bytes: 1048576.0,
            cs_us: a.cs_large_read_us,
            client_us: a.client_large_read_us,
            cs_port: 1.0,
            maps: large_maps,
        },
        Load {
            name: "1 MiB write",
            bytes: 1048576.0,
            cs_us: a.cs_large_write_us,
            client_us: a.client_large_write_us,
            cs_port: REPLICAS,
            maps: large_maps,
        },
    ];
    let port_bytes_per_s = a.port_gbit * 1e9 / 8.0 * PAYLOAD;
    println!(
        "Chunk servers of {} shards with a core each, ports of {} Gb/s, a client uses one core and one port. Disks are not in it.\n",
        a.shards, a.port_gbit
    );
    println!(
        "| load | CS | clients | operations per s | GB/s | what is full | master's core: heartbeats, sessions, maps | all |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for load in &loads {
        for cs in [3.0, 30.0, 300.0, 3000.0] {
            for clients in [1.0, 10.0, 100.0, 1000.0] {
                let limits = [
                    ("clients' cores", clients * 1e6 / load.client_us),
                    ("clients' ports", clients * port_bytes_per_s / load.bytes),
                    ("CS' cores", cs * a.shards * 1e6 / load.cs_us),
                    ("CS' ports", cs * port_bytes_per_s / (load.bytes * load.cs_port)),
                ];
                let standing = cs * a.shards * HEARTBEATS_PER_S * a.heartbeat_us
                    + clients * KEEP_ALIVES_PER_S * a.keep_alive_us;
                // What is left of the master's core answers requests for maps.
                let by_master = (1e6 - standing).max(0.0) / (load.maps * a.map_us);
                let (full, per_s) = limits
                    .into_iter()
                    .chain([("the master", by_master)])
                    .min_by(|x, y| x.1.total_cmp(&y.1))
                    .expect("five limits");
                let shares = [
                    cs * a.shards * HEARTBEATS_PER_S * a.heartbeat_us,
                    clients * KEEP_ALIVES_PER_S * a.keep_alive_us,
                    per_s * load.maps * a.map_us,
                ]
                .map(|us| us / 1e4);
                println!(
                    "| {} | {cs} | {clients} | {} | {} | {full} | {} % | {} % |",
                    load.name,
                    number(per_s),
                    number(per_s * load.bytes / 1e9),
                    shares.map(number).join(" + "),
                    number(shares.iter().sum()),
                );
            }
        }
    }
    println!(
        "\nOne master's core is full with {} shards that only beat, {} clients that only keep their sessions, {} maps or {} new files a second.",
        number(1e6 / (HEARTBEATS_PER_S * a.heartbeat_us)),
        number(1e6 / (KEEP_ALIVES_PER_S * a.keep_alive_us)),
        number(1e6 / a.map_us),
        number(1e6 / a.create_us),
    );
}
