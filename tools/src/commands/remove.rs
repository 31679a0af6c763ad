//! `rm-cs`: removes a chunk server, or ends a removal.

use crate::mds_link::MdsLink;
use crate::{Context, Outcome};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;
use wire::CsId;
use wire::mds_api::{MdsReply, MdsRequest, RemovalStat};

const LOOK_EVERY: Duration = Duration::from_millis(300);

/// How `rm-cs` is to be done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Drop it at once, without copying anything.
    pub force: bool,
    /// Return when it has been removed.
    pub wait: bool,
    /// Only say whether it can be, and what would be done.
    pub dry_run: bool,
}

pub fn rm_cs(context: &Context, cs: CsId, options: Options) -> Outcome {
    let mut link = context.link()?;
    if options.dry_run {
        link.ask(&MdsRequest::MayRemoveCs { cs, force: options.force })?;
        let stat = removal(&mut link, cs)?;
        if context.json {
            return print_line(&stat);
        }
        let then = match options.force {
            true => format!(
                "would be dropped at once; its {} replicas are on other servers too, and would be copied anew",
                stat.replicas_left
            ),
            false => {
                format!("would be removed after its {} replicas have gone elsewhere", stat.replicas_left)
            }
        };
        println!("CS#{cs} {then}. Nothing was changed.");
        return Ok(());
    }
    link.ask(&MdsRequest::RemoveCs { cs, force: options.force })?;
    if options.wait {
        wait(context, &mut link, cs)?;
    }
    let stat = removal(&mut link, cs)?;
    if context.json {
        return print_line(&stat);
    }
    if stat.dropped {
        println!("CS#{cs} has been removed. Its pstorage-csd has ended; delete its directory.");
    } else {
        println!(
            "CS#{cs} is being removed: {} replicas have to go elsewhere. It goes on in the background; 'rm-cs --wait {cs}' \
             shows it, 'rm-cs --cancel {cs}' ends it.",
            stat.replicas_left
        );
    }
    Ok(())
}

pub fn cancel(context: &Context, cs: CsId) -> Outcome {
    let mut link = context.link()?;
    link.ask(&MdsRequest::CancelRemoval { cs })?;
    let stat = removal(&mut link, cs)?;
    if context.json {
        return print_line(&stat);
    }
    println!(
        "CS#{cs} stays, with {} replicas. What has moved comes back as balance needs it.",
        stat.replicas_left
    );
    Ok(())
}

fn removal(link: &mut MdsLink, cs: CsId) -> Outcome<RemovalStat> {
    match link.ask(&MdsRequest::RemovalStat { cs })? {
        MdsReply::Removal(stat) => Ok(stat),
        _ => Err("unexpected answer of the metadata server".into()),
    }
}

/// A progress bar, or with --json a line for every change, until the server has been removed.
fn wait(context: &Context, link: &mut MdsLink, cs: CsId) -> Outcome {
    let mut last: Option<RemovalStat> = None;
    let bar = if context.json { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} replicas moved, {eta} left {msg}");
    bar.set_style(style.expect("a valid template"));
    loop {
        let stat = removal(link, cs)?;
        if stat.dropped {
            bar.finish_and_clear();
            return Ok(());
        }
        if !stat.draining {
            return Err(format!(
                "the removal of CS#{cs} was cancelled; {} replicas are still there",
                stat.replicas_left
            ));
        }
        let all = bar.length().unwrap_or(0).max(stat.replicas_left);
        bar.set_length(all);
        bar.set_position(all - stat.replicas_left);
        bar.set_message(match stat.without_place {
            0 => String::new(),
            n => format!("({n} have no place to go: add a chunk server)"),
        });
        if context.json && last != Some(stat) {
            print_line(&stat)?;
        }
        last = Some(stat);
        std::thread::sleep(LOOK_EVERY);
    }
}

/// One object a line, so that a script can follow.
fn print_line(stat: &RemovalStat) -> Outcome {
    println!("{}", serde_json::to_string(stat).map_err(|e| e.to_string())?);
    Ok(())
}
