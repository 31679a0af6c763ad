//! `configure-cs`: changes a chunk server that is stopped.
//!
//! Crash-safe at every step, in this order: what may be left over is written down (`DIR/leftovers`); new files are made,
//! complete and synced, under names that nothing has used; the server's card is replaced, in one step; what the card no
//! longer names is removed. Whoever is killed on the way leaves a server that starts as it was, or as it is to be.

use super::{make, stat::human};
use crate::{Context, Outcome};
use engine::control::{self, CsControl};
use engine::journal_move::JournalMove;
use shards::ring::{self, RingConfig};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

const LEFTOVERS: &str = "leftovers";
/// Room that stays free when journals move into the server's directory.
const RESERVE_BYTES: u64 = 128 << 20;

/// What is to be changed.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub tier: Option<u8>,
    /// room.row.rack.
    pub location: Option<String>,
    pub no_location: bool,
    pub journal_dir: Option<PathBuf>,
    pub no_journal: bool,
    /// Of the whole server, as the next.
    pub journal_bytes: Option<u64>,
    pub cache_dir: Option<PathBuf>,
    pub cache_bytes: Option<u64>,
    pub no_cache: bool,
    pub ip: Option<IpAddr>,
    /// Only show what would be set.
    pub dry_run: bool,
}

pub fn configure_cs(context: &Context, dir: &Path, changes: &Changes) -> Outcome {
    let say = |e: control::ControlError| e.to_string();
    control::read(dir).map_err(say)?; // It is one, before a lock is made there.
    let _lock = control::lock(dir).map_err(say)?;
    let now = control::read(dir).map_err(say)?;
    if context.cluster.as_ref().is_some_and(|cluster| *cluster != now.cluster) {
        return Err(format!(
            "{} belongs to cluster '{}': name that with -c, or another directory",
            dir.display(),
            now.cluster
        ));
    }
    if changes.dry_run {
        let new = [&changes.journal_dir, &changes.cache_dir].into_iter().flatten().filter(|d| !d.exists());
        let new: Vec<&PathBuf> = new.collect();
        let wanted = wanted(dir, &now, changes);
        new.into_iter().for_each(|made| drop(fs::remove_dir(made))); // To see what they can hold.
        show(context, dir, &wanted?)?;
        if !context.json {
            println!("So it would be; nothing was changed.");
        }
        return Ok(());
    }
    remove_leftovers(dir, &now)?;
    let wanted = wanted(dir, &now, changes)?;
    if wanted != now {
        note_leftovers(dir, &now, &wanted)?;
        make_journals(dir, &now, &wanted)?;
        if wanted.cache != now.cache {
            make::make_cache_files(&wanted)?;
        }
        control::replace(dir, &wanted).map_err(say)?;
        remove_leftovers(dir, &wanted)?;
    }
    show(context, dir, &wanted)
}

/// The server's card as it is to be. Refuses what can't be before anything is changed.
fn wanted(dir: &Path, now: &CsControl, changes: &Changes) -> Outcome<CsControl> {
    let mut wanted = now.clone();
    wanted.tier = changes.tier.unwrap_or(now.tier);
    if let Some(location) = &changes.location {
        wire::check_location(location)?;
        wanted.location = Some(location.clone());
    } else if changes.no_location {
        wanted.location = None;
    }
    if let Some(ip) = changes.ip {
        make::check_ip(ip)?;
        wanted.ip = ip;
    }
    change_journal(dir, &mut wanted, changes)?;
    change_cache(&mut wanted, changes)?;
    Ok(wanted)
}

fn change_journal(dir: &Path, wanted: &mut CsControl, changes: &Changes) -> Outcome {
    let shards = u64::from(wanted.shards);
    let before = (wanted.journal_dir.clone(), wanted.journal_bytes);
    if let Some(bytes) = changes.journal_bytes {
        wanted.journal_bytes = make::shard_journal_bytes(bytes, wanted.shards)?;
    }
    let bytes = wanted.journal_bytes * shards;
    if let Some(on_ssd) = &changes.journal_dir {
        wanted.journal_dir = Some(make::ssd_dir(on_ssd, 0, "--journal-size")?);
    } else if changes.no_journal {
        wanted.journal_dir = None;
    }
    if before == (wanted.journal_dir.clone(), wanted.journal_bytes) {
        return Ok(());
    }
    match &wanted.journal_dir {
        Some(on_ssd) => drop(make::ssd_dir(on_ssd, bytes, "--journal-size")?),
        None => {
            let free = make::free_bytes(dir)?;
            if free < bytes + RESERVE_BYTES {
                return Err(format!(
                    "{}: {} MB are free, too few for journals of {} MB: make room, or ask for less with \
                     --journal-size",
                    dir.display(),
                    free >> 20,
                    bytes >> 20
                ));
            }
        }
    }
    wanted.journal_tag = Some(crate::random_hex::<4>());
    Ok(())
}

fn change_cache(wanted: &mut CsControl, changes: &Changes) -> Outcome {
    if changes.no_cache {
        wanted.cache = None;
    } else if changes.cache_dir.is_some() || changes.cache_bytes.is_some() {
        let old = wanted.cache.as_ref();
        let cache_dir = changes.cache_dir.clone().or_else(|| old.map(|c| c.dir.clone()));
        let bytes = changes.cache_bytes.or_else(|| old.map(|c| c.bytes * u64::from(wanted.shards)));
        let new = make::new_cache(cache_dir.as_deref(), bytes, wanted.shards)?;
        let same =
            |a: &control::CacheControl, b: &control::CacheControl| (&a.dir, a.bytes) == (&b.dir, b.bytes);
        if !old.zip(new.as_ref()).is_some_and(|(old, new)| same(old, new)) {
            wanted.cache = new;
        }
    }
    Ok(())
}

/// Journals and cache files as a card names them: below the server's directory, or with full paths. Never joined here: one
/// directory may have several names, and a file must not be taken for another because of that.
fn files_of(control: &CsControl) -> BTreeSet<String> {
    let shards = 0..control.shards;
    let caches = control.cache.iter().flat_map(|c| shards.clone().map(move |s| control.cache_path(c, s)));
    shards.clone().map(|s| control.journal_path(s)).chain(caches).collect()
}

fn note_leftovers(dir: &Path, now: &CsControl, wanted: &CsControl) -> Outcome {
    let (old, new) = (files_of(now), files_of(wanted));
    let files: Vec<&String> = old.symmetric_difference(&new).collect();
    if files.is_empty() {
        return Ok(());
    }
    let text = serde_json::to_vec(&files).map_err(|e| e.to_string())?;
    let list = dir.join(LEFTOVERS);
    ring::replace_file(&list, &text).map_err(shards::text::at(&list))
}

/// Removes what this or an earlier configure-cs has left, except what the card names.
fn remove_leftovers(dir: &Path, control: &CsControl) -> Outcome {
    let list = dir.join(LEFTOVERS);
    let fail = shards::text::at(&list);
    let text = match fs::read(&list) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(fail(e)),
    };
    let files: BTreeSet<String> = serde_json::from_slice(&text).map_err(|e| fail(e.into()))?;
    for file in files.difference(&files_of(control)) {
        let path = dir.join(file);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                // A lost SSD must not keep the server from being changed.
                eprintln!("pstorage: {} is no longer used and can't be removed: {e}", path.display());
            }
            _ => {}
        }
    }
    fs::remove_file(&list).map_err(fail)
}

/// Makes the new journals: each goes on where the old one, applied to the files, ends.
fn make_journals(dir: &Path, now: &CsControl, wanted: &CsControl) -> Outcome {
    if now.journal_path(0) == wanted.journal_path(0) {
        return Ok(());
    }
    let made = |shard: u16| dir.join(CsControl::shard_dir(shard)).join("store").exists();
    if let Some(lost) = (0..now.shards).find(|shard| !made(*shard) && dir.join("shards-made").exists()) {
        return Err(format!(
            "{} has lost its shard {lost}, so its journals stay where they are: let the cluster copy its chunks to a \
             new server (make-cs)",
            dir.display()
        ));
    }
    let bytes = wanted.journal_bytes;
    // A shard that never ran makes its journal when it does.
    for shard in (0..now.shards).filter(|shard| made(*shard)) {
        let to = dir.join(wanted.journal_path(shard));
        println!("Shard {shard}: applying its journal, then making {} ({})", to.display(), human(bytes));
        let node = JournalMove::new(now.store_config(shard), to.to_string_lossy().into_owned(), bytes);
        let ring = RingConfig::new("journal-move", dir, wire::framing);
        let running = ring::spawn(ring, move || node).map_err(|e| format!("starting a thread: {e}"))?;
        running.join().map_err(|e| format!("{e}. The server is as it was"))?;
    }
    Ok(())
}

fn show(context: &Context, dir: &Path, control: &CsControl) -> Outcome {
    let shards = u64::from(control.shards);
    if context.json {
        return crate::print_json(&serde_json::json!({
            "cs": control.id, "cluster": control.cluster, "tier": control.tier, "location": control.location, "address": control.ip,
            "shards": control.shards, "capacity_bytes": control.capacity_bytes,
            "journal_dir": control.journal_dir, "journal_bytes": control.journal_bytes * shards,
            "cache_dir": control.cache.as_ref().map(|c| &c.dir),
            "cache_bytes": control.cache.as_ref().map(|c| c.bytes * shards),
        }));
    }
    let journal_dir = control.journal_dir.as_deref().unwrap_or(dir);
    println!("CS#{} of cluster '{}' in {}", control.id, control.cluster, dir.display());
    println!("tier {}, address {}, {} shards", control.tier, control.ip, control.shards);
    println!("location: {}", control.location.as_deref().unwrap_or("that of its host"));
    println!("journals: {} in {}", human(control.journal_bytes * shards), journal_dir.display());
    match &control.cache {
        Some(cache) => println!("read cache: {} in {}", human(cache.bytes * shards), cache.dir.display()),
        None => println!("read cache: none"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::control::CacheControl;

    fn card(journal_tag: Option<&str>) -> CsControl {
        CsControl {
            format: control::FORMAT,
            service: "cs".into(),
            cluster: "c".into(),
            id: wire::CsId(3),
            host_id: [0; 16],
            host: "h".into(),
            tier: 0,
            location: None,
            shards: 1,
            ip: [127, 0, 0, 1].into(),
            capacity_bytes: 1 << 30,
            journal_dir: None,
            journal_bytes: 4 << 20,
            journal_tag: journal_tag.map(String::from),
            cache: Some(CacheControl { dir: "/nowhere".into(), bytes: 4 << 20, id: [7; 16] }),
        }
    }

    #[test]
    fn what_the_card_names_is_never_left_over() {
        // The same directory under another name, as through a link.
        let root = std::env::temp_dir().join(format!("leftovers-{}", crate::random_hex::<4>()));
        fs::create_dir_all(root.join("cs/shard-000")).unwrap();
        std::os::unix::fs::symlink(root.join("cs"), root.join("link")).unwrap();
        let (old, new) = (card(None), card(Some("ab")));
        for name in ["journal", "journal-ab"] {
            fs::write(root.join("cs/shard-000").join(name), "x").unwrap();
        }
        note_leftovers(&root.join("cs"), &old, &new).unwrap();
        remove_leftovers(&root.join("link"), &new).unwrap();
        let left: Vec<_> =
            fs::read_dir(root.join("cs/shard-000")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["journal-ab"]);
        assert!(!root.join("cs").join(LEFTOVERS).exists());
        fs::remove_dir_all(&root).unwrap();
    }
}
