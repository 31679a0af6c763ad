//! Links of all documents, and the table of contents that mdBook makes a book of the guide by.

use crate::guide;
use pstorage_tests::guide::chapters;
use regex::Regex;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn documents(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).flatten();
    let (dirs, files): (Vec<_>, Vec<_>) = entries.map(|e| e.path()).partition(|p| p.is_dir());
    let here = files.into_iter().filter(|p| p.extension().is_some_and(|e| e == "md"));
    here.chain(dirs.iter().flat_map(|dir| documents(dir))).collect()
}

/// Lines outside of blocks of code.
fn prose(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut code = false;
    let outside = |line: &&str| {
        let fence = line.starts_with("```");
        code ^= fence;
        !code && !fence
    };
    text.lines().filter(outside).map(String::from).collect()
}

/// Where `(…)` of `[…](…)` leads to.
fn links(path: &Path) -> Vec<String> {
    let link = Regex::new(r"\[[^\]]*\]\(([^)\s]+)\)").expect("a pattern");
    prose(path)
        .iter()
        .flat_map(|line| link.captures_iter(line).map(|c| c[1].to_string()).collect::<Vec<_>>())
        .collect()
}

/// The anchors that GitHub and mdBook give to headings.
fn anchors(path: &Path) -> BTreeSet<String> {
    let lines = prose(path);
    let headings =
        lines.iter().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let letters = |c: char| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => c.to_lowercase().next(),
        _ => None,
    };
    headings.map(|heading| heading.chars().filter_map(letters).collect()).collect()
}

#[test]
fn links_lead_to_files_and_headings_that_are_there() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut dead = Vec::new();
    for document in documents(&root.join("docs")).into_iter().chain([root.join("README.md")]) {
        for link in links(&document).into_iter().filter(|l| !l.contains("://") && !l.starts_with("mailto:")) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = document.parent().expect("a file is in a directory").join(file);
            let target = if file.is_empty() { document.clone() } else { target };
            if !target.exists() || !(anchor.is_empty() || anchors(&target).contains(anchor)) {
                dead.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
}

#[test]
fn the_table_of_contents_has_all_chapters_in_the_order_of_the_readme() {
    let names = |paths: Vec<PathBuf>| -> Vec<String> {
        paths.iter().map(|p| p.file_name().expect("a file").to_string_lossy().into_owned()).collect()
    };
    let table = names(chapters(guide()));
    assert_eq!(links(&guide().join("SUMMARY.md")), [vec!["README.md".into()], table.clone()].concat());
    let all: BTreeSet<String> = names(documents(guide())).into_iter().collect();
    let listed = table.into_iter().chain(["README.md", "SUMMARY.md"].map(String::from)).collect();
    assert_eq!(all, listed, "each file is a chapter");
}
