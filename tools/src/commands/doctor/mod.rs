//! `doctor`: looks whether this host, and with `-c` the cluster, is as it should be, and says what to do where it is not.
//!
//! Nothing is changed. Checks of the host need no cluster and no server: `doctor DIR…` looks at disks before anything is
//! made on them. What can't be seen from here is said to be unknown, never to be well.

pub(crate) mod cluster;
mod disks;
pub(crate) mod finding;
mod host;
mod network;
mod servers;
mod tree;

use super::services;
use crate::{Context, Outcome};
use finding::{Finding, Verdict};
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use tree::Tree;

/// What was looked at together.
#[derive(serde::Serialize)]
struct Part {
    /// `host` or `cluster`.
    of: &'static str,
    name: String,
    findings: Vec<Finding>,
}

/// All that was found, for people or as JSON.
#[derive(serde::Serialize)]
pub struct Diagnosis {
    verdict: Verdict,
    parts: Vec<Part>,
}

/// Exit status: 0, all is well as far as can be known; 1, there are warnings; 2, there are errors.
pub fn doctor(context: &Context, dirs: &[PathBuf]) -> Outcome<ExitCode> {
    let found = diagnose(context, dirs);
    if context.json {
        crate::print_json(&found)?;
    } else {
        print!("{found}");
    }
    Ok(ExitCode::from(match found.verdict {
        Verdict::Ok | Verdict::Unknown => 0,
        Verdict::Warning => 1,
        Verdict::Error => 2,
    }))
}

pub fn diagnose(context: &Context, dirs: &[PathBuf]) -> Diagnosis {
    let mut parts =
        vec![Part { of: "host", name: shards::host::host_name(), findings: of_host(context, dirs) }];
    if let Some(name) = &context.cluster {
        parts.push(Part { of: "cluster", name: name.clone(), findings: cluster::look(context) });
    }
    let verdicts = parts.iter().flat_map(|part| &part.findings).map(|finding| finding.verdict);
    Diagnosis { verdict: verdicts.max().unwrap_or(Verdict::Ok), parts }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            writeln!(f, "{} {}", if part.of == "host" { "Host" } else { "Cluster" }, part.name)?;
            part.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
            writeln!(f)?;
        }
        let all = || self.parts.iter().flat_map(|part| &part.findings);
        let count = |verdict| all().filter(|finding| finding.verdict == verdict).count();
        writeln!(
            f,
            "{} checks: {} well, {} unknown, {} warnings, {} errors",
            all().count(),
            count(Verdict::Ok),
            count(Verdict::Unknown),
            count(Verdict::Warning),
            count(Verdict::Error)
        )
    }
}

fn of_host(context: &Context, dirs: &[PathBuf]) -> Vec<Finding> {
    let tree = Tree::of_this_host();
    let mut findings = host::look(&tree);
    findings.extend(host::keys(&context.etc));
    // Of all clusters: they share the host.
    match services::of_host(&Context { cluster: None, ..context.clone() }) {
        Ok(services) => {
            let list = context.etc.join(services::FILE);
            let removed = services::removed(context, &services);
            findings.extend(services.iter().flat_map(|service| {
                match removed.iter().any(|r| r.path == service.path) {
                    true => vec![host::removed(service, &list)],
                    false => host::service(&tree, service, &list),
                }
            }));
            findings.push(host::memory(&tree, services.iter().filter(|s| s.service == "cs").count() as u64));
            findings.extend(disks::look(&tree, &services, dirs));
            findings.extend(network::look(&tree, &services));
        }
        Err(why) => {
            let todo = "correct that file, or remove it: make-cs and make-mds note new servers in it";
            findings.push(Finding::error("services", "", why, todo));
        }
    }
    findings
}
