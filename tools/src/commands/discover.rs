//! `discover`: which clusters there are, or where the metadata servers of one are; by each method, with times.

use super::stat::time;
use crate::{Context, Outcome};
use discovery::find::{ADDRESS_METHODS, NAME_METHODS, Outcome as Asked};
use discovery::{Method, Sources, System};
use serde::Serialize;
use std::net::SocketAddr;
use std::time::Instant;

/// What came of one method.
#[derive(Serialize)]
struct Report<T> {
    method: Method,
    ok: bool,
    /// When it ended, UTC, milliseconds since 1970.
    unix_ms: u64,
    took_ms: u64,
    found: Vec<T>,
    /// Why it found nothing.
    why: Option<String>,
}

/// Asks one method and says so at once: it may take seconds until the next has ended.
fn ask<T>(context: &Context, verbose: bool, method: Method, ask: impl FnOnce() -> Asked<T>) -> Report<T> {
    let began = Instant::now();
    let asked = ask();
    let unix_ms = shards::host::unix_ms();
    let ok = asked.is_ok();
    if !context.json {
        let verdict = if ok { "OK" } else { "FAIL" };
        println!("{} Discovering using {method}: {verdict}", time(unix_ms));
    }
    let (found, why) = asked.map_or_else(|why| (Vec::new(), Some(why)), |found| (found, None));
    if let Some(why) = why.as_ref().filter(|_| verbose && !context.json) {
        eprintln!("  {why}");
    }
    Report { method, ok, unix_ms, took_ms: began.elapsed().as_millis() as u64, found, why }
}

fn why_nothing<T>(methods: &[Report<T>]) -> String {
    let line = |r: &Report<T>| r.why.as_ref().map(|why| format!("\n  {}: {why}", r.method));
    methods.iter().filter_map(line).collect()
}

/// Lists the clusters of this network.
pub fn clusters(context: &Context, verbose: bool) -> Outcome {
    #[derive(Serialize)]
    struct All {
        methods: Vec<Report<String>>,
        clusters: Vec<String>,
    }
    let mut system = System::new(&context.etc);
    let methods: Vec<Report<String>> = NAME_METHODS
        .into_iter()
        .map(|method| ask(context, verbose, method, || system.names(method)))
        .collect();
    let mut clusters: Vec<String> = methods.iter().flat_map(|r| r.found.clone()).collect();
    clusters.sort();
    clusters.dedup();
    let all = All { methods, clusters };
    if context.json {
        crate::print_json(&all)?;
    }
    if all.clusters.is_empty() {
        return Err(format!(
            "no cluster was found:{}\nHow clusters are made known: docs/admin-guide/discovery.md",
            why_nothing(&all.methods)
        ));
    }
    if !context.json {
        all.clusters.iter().for_each(|name| println!("{name}"));
    }
    Ok(())
}

/// Shows what each method says about the metadata servers of one cluster. Commands use the first that knows any.
pub fn servers(context: &Context, cluster: &str, verbose: bool) -> Outcome {
    #[derive(Serialize)]
    struct All {
        cluster: String,
        methods: Vec<Report<SocketAddr>>,
        /// Those that commands use, in the order in which they are tried.
        addrs: Vec<SocketAddr>,
    }
    wire::check_cluster_name(cluster)?;
    let mut system = System::new(&context.etc);
    let methods: Vec<Report<SocketAddr>> = ADDRESS_METHODS
        .into_iter()
        .map(|method| ask(context, verbose, method, || system.addrs(method, cluster)))
        .collect();
    let addrs = methods.iter().find(|r| r.ok).map(|r| r.found.clone()).unwrap_or_default();
    let all = All { cluster: cluster.into(), methods, addrs };
    if context.json {
        crate::print_json(&all)?;
    }
    if all.addrs.is_empty() {
        return Err(format!(
            "no metadata server of cluster '{cluster}' was found:{}\nHow clusters are made known: \
             docs/admin-guide/discovery.md",
            why_nothing(&all.methods)
        ));
    }
    for report in all.methods.iter().filter(|_| !context.json) {
        report.found.iter().for_each(|addr| println!("{addr} ({})", report.method));
    }
    Ok(())
}
