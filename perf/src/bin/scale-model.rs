//! `scale-model`: where clusters of 3 to 3,000 chunk servers with 1 to 1,000 clients saturate. Nothing but arithmetic on costs that were measured
//! on one machine; the defaults are those of docs/scale.md, which says how each was found.

use clap::Parser;
use perf::text::number;

/// Computes where large clusters saturate.
#[derive(Parser)]
struct Args {
    /// CPU us of all chunk servers for a 4 KiB read at depth 32.
    #[arg(long, default_value_t = 6.1)]
    cs_read_us: f64,
    /// CPU us of all chunk servers for a durable 4 KiB write with three replicas at depth 32.
    #[arg(long, default_value_t = 51.0)]
    cs_write_us: f64,
    /// CPU us of all chunk servers for a durable write of 1 MiB with three replicas, and for a read.
    #[arg(long, default_value_t = 1372.0)]
    cs_large_write_us: f64,
    #[arg(long, default_value_t = 362.0)]
    cs_large_read_us: f64,
    /// The same of the client.
    #[arg(long, default_value_t = 3.1)]
    client_read_us: f64,
    #[arg(long, default_value_t = 5.6)]
    client_write_us: f64,
    #[arg(long, default_value_t = 254.0)]
    client_large_write_us: f64,
    #[arg(long, default_value_t = 197.0)]
    client_large_read_us: f64,
    /// CPU us of the master for a heartbeat of a shard, a keep-alive of a client, the map of a chunk, a new file.
    #[arg(long, default_value_t = 54.0)]
    heartbeat_us: f64,
    #[arg(long, default_value_t = 170.0)]
    keep_alive_us: f64,
    #[arg(long, default_value_t = 2.1)]
    map_us: f64,
    #[arg(long, default_value_t = 7.0)]
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
    /// Of so many 4 KiB requests one needs a map that the client has not got yet.
    #[arg(long, default_value_t = 1000.0)]
    small_per_map: f64,
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

/// What a cluster reaches, and what stops it there.
struct Limit {
    full: &'static str,
    per_s: f64,
    /// Shares of the master's core: heartbeats, keep-alives, maps.
    master: [f64; 3],
}

fn loads(a: &Args) -> [Load; 4] {
    let small = |name, cs_us, client_us, cs_port| Load {
        name,
        bytes: 4096.0,
        cs_us,
        client_us,
        cs_port,
        maps: 1.0 / a.small_per_map,
    };
    let large = |name, cs_us, client_us, cs_port| Load {
        name,
        bytes: f64::from(1 << 20),
        cs_us,
        client_us,
        cs_port,
        maps: 1.0 / a.chunk_mib,
    };
    // A write comes in once at each replica, and leaves the first one for the others.
    [
        small("4 KiB random read", a.cs_read_us, a.client_read_us, 1.0),
        small("4 KiB random write", a.cs_write_us, a.client_write_us, REPLICAS),
        large("1 MiB read", a.cs_large_read_us, a.client_large_read_us, 1.0),
        large("1 MiB write", a.cs_large_write_us, a.client_large_write_us, REPLICAS),
    ]
}

fn limit(a: &Args, load: &Load, cs: f64, clients: f64) -> Limit {
    let port_bytes_per_s = a.port_gbit * 1e9 / 8.0 * PAYLOAD;
    let heartbeats = cs * a.shards * HEARTBEATS_PER_S * a.heartbeat_us / 1e6;
    let keep_alives = clients * KEEP_ALIVES_PER_S * a.keep_alive_us / 1e6;
    let maps_us = load.maps * a.map_us;
    let limits = [
        ("clients' cores", clients * 1e6 / load.client_us),
        ("clients' ports", clients * port_bytes_per_s / load.bytes),
        ("CS' cores", cs * a.shards * 1e6 / load.cs_us),
        ("CS' ports", cs * port_bytes_per_s / (load.bytes * load.cs_port)),
        // What heartbeats and sessions leave of its core answers requests for maps.
        ("the master", (1.0 - heartbeats - keep_alives).max(0.0) * 1e6 / maps_us),
    ];
    let (full, per_s) = limits.into_iter().min_by(|x, y| x.1.total_cmp(&y.1)).expect("five limits");
    Limit { full, per_s, master: [heartbeats, keep_alives, per_s * maps_us / 1e6] }
}

fn main() {
    let a = Args::parse();
    println!(
        "Chunk servers of {} shards with a core each, ports of {} Gb/s, a client uses one core and one port. Disks are not in it.\n",
        a.shards, a.port_gbit
    );
    println!(
        "| load | CS | clients | operations per s | GB/s | what is full | % of the master's core: heartbeats, sessions, maps |"
    );
    println!("|---|---|---|---|---|---|---|");
    for load in &loads(&a) {
        for cs in [3.0, 30.0, 300.0, 3000.0] {
            for clients in [1.0, 10.0, 100.0, 1000.0] {
                let limit = limit(&a, load, cs, clients);
                println!(
                    "| {} | {cs} | {clients} | {} | {} | {} | {} |",
                    load.name,
                    number(limit.per_s),
                    number(limit.per_s * load.bytes / 1e9),
                    limit.full,
                    limit.master.map(|share| number(share * 100.0)).join(" + "),
                );
            }
        }
    }
    println!(
        "\nOne core of the master is full with {} shards that only beat, with {} clients that only keep their sessions, with {} maps a second or \
         with {} new files a second.",
        number(1e6 / (HEARTBEATS_PER_S * a.heartbeat_us)),
        number(1e6 / (KEEP_ALIVES_PER_S * a.keep_alive_us)),
        number(1e6 / a.map_us),
        number(1e6 / a.create_us),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_full_changes_with_the_shape() {
        let mut a = Args::parse_from(["scale-model"]);
        (a.client_read_us, a.cs_read_us, a.shards, a.map_us) = (10.0, 20.0, 2.0, 2.0);
        (a.heartbeat_us, a.small_per_map, a.port_gbit) = (10.0, 100.0, 100.0);
        let of = |cs, clients| limit(&a, &loads(&a)[0], cs, clients);
        let one = of(3.0, 1.0);
        assert_eq!((one.full, one.per_s), ("clients' cores", 100_000.0));
        assert!((one.master[2] - 0.002).abs() < 1e-9);
        let many = of(3.0, 100.0);
        assert_eq!((many.full, many.per_s), ("CS' cores", 300_000.0));
        // 3,000 servers of 2 shards beat 12,000 times a second: 0.12 of the core.
        assert!((of(3000.0, 1.0).master[0] - 0.12).abs() < 1e-9);
        assert_eq!(of(3000.0, 1000.0).full, "the master");
    }
}
