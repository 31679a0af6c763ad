//! `report`: everything that helps to find out what is wrong, in one file, without secrets.
//!
//! It is wanted when something does not work: what can't be had is noted in it, and the rest goes on.

mod archive;
mod host;
mod redact;

use super::stat::{event_line, events_after, page};
use super::{doctor, stat};
use crate::conf::Conf;
use crate::mds_link::MdsLink;
use crate::{Context, Outcome};
use archive::Archive;
use indicatif::{ProgressBar, ProgressStyle};
use redact::Redactor;
use shards::text::Civil;
use std::path::{Path, PathBuf};
use wire::identity::PROGRAM_VERSION;
use wire::mds_api::{MdsReply, MdsRequest};

type Step = (&'static str, fn(&mut Archive, &Context) -> Outcome);

const STEPS: [Step; 7] = [
    ("state, events and settings of the cluster", cluster),
    ("settings of this host", host::settings),
    ("servers and their logs", host::servers),
    ("mounts and their logs", host::mounts),
    ("kernel, disks and network", |archive, _| host::system(archive)),
    ("systemd's journal", |archive, _| host::journal(archive)),
    ("doctor", checks),
];

/// Writes `out`, or a file in this directory whose name tells the cluster, the host and the time.
pub fn report(context: &Context, out: Option<&Path>) -> Outcome {
    let top = name(context.cluster()?);
    let path = out.map_or_else(|| PathBuf::from(format!("{top}.tar.gz")), PathBuf::from);
    let unknowing = Redactor::new([]);
    let redactor = Redactor::new(host::known_secrets(context, |name| unknowing.names_a_secret(name)));
    let archive = Archive::create(&path, top, redactor)?;
    let bytes = fill(archive, context).inspect_err(|_| {
        // Half of one helps nobody.
        let _ = std::fs::remove_file(&path);
    })?;
    if context.json {
        return crate::print_json(&serde_json::json!({"file": path, "bytes": bytes}));
    }
    println!("Wrote {} ({}).", path.display(), stat::human(bytes));
    println!(
        "Keys, and what looks like a password or key, were left out. It does hold host names, addresses and names of files: \
         look through it before you send it."
    );
    Ok(())
}

fn name(cluster: &str) -> String {
    let c = Civil::from_unix_s(shards::host::unix_ms() / 1000);
    format!(
        "pstorage-report-{cluster}-{}-{:04}{:02}{:02}-{:02}{:02}{:02}",
        shards::host::host_name(),
        c.year,
        c.month,
        c.day,
        c.hour,
        c.minute,
        c.second
    )
}

fn fill(mut archive: Archive, context: &Context) -> Outcome<u64> {
    let bar = ProgressBar::new(STEPS.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}").expect("a valid template"));
    archive.text(
        "README.txt",
        &format!(
            "Problem report of cluster '{}', made on {} by pstorage {PROGRAM_VERSION}.\nTimes are UTC. What could not be had is \
             in missing.txt.\n",
            context.cluster()?,
            shards::host::host_name()
        ),
    )?;
    for (what, step) in STEPS {
        bar.set_message(what);
        step(&mut archive, context)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    archive.finish()
}

fn cluster(archive: &mut Archive, context: &Context) -> Outcome {
    let asked = context.link().and_then(|mut link| Ok((link.ask(&MdsRequest::ClusterStat)?, link)));
    let (stat, mut link) = match asked {
        Ok((MdsReply::Stat(stat), link)) => (stat, link),
        Ok(_) => return Err("unexpected answer of the metadata server".into()),
        Err(why) => {
            // Once is enough: each try takes a while.
            archive.note("cluster/", &why);
            return Ok(());
        }
    };
    archive.json("cluster/stat.json", &stat)?;
    archive.text_or_note("cluster/stat.txt", page(&stat, &Conf::default()))?;
    archive.text_or_note("cluster/events.txt", events(&mut link))?;
    match link.ask(&MdsRequest::GetConfig) {
        Ok(MdsReply::Config { settings }) => archive.json("cluster/config.json", &settings)?,
        other => archive.note("cluster/config.json", &format!("{other:?}")),
    }
    match link.ask(&MdsRequest::ListNodes) {
        Ok(MdsReply::Nodes { nodes }) => archive.json("cluster/nodes.json", &nodes)?,
        other => archive.note("cluster/nodes.json", &format!("{other:?}")),
    }
    Ok(())
}

fn events(link: &mut MdsLink) -> Outcome<String> {
    let (mut lines, mut after) = (Vec::new(), 0);
    loop {
        let (events, _) = events_after(link, after)?;
        let Some(last) = events.last() else { return Ok(lines.join("\n")) };
        after = last.number;
        lines.extend(events.iter().map(event_line));
    }
}

fn checks(archive: &mut Archive, context: &Context) -> Outcome {
    let found = doctor::diagnose(context, &[]);
    archive.json("doctor.json", &found)?;
    archive.text("doctor.txt", &found.to_string())
}
