//! The administrator's guide, followed to the letter: all its commands from the first chapter to the last, on three hosts, each with
//! files, processes and a network of its own. What is printed must be what the guide shows. How blocks are described for this test:
//! docs/testing.md, "The guide".

mod commands;
mod links;
mod story;

use pstorage_tests::guide::{chapters, read};
use pstorage_tests::real::Machine;
use std::io::Write;
use std::path::Path;
use story::Story;

fn guide() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/admin-guide"))
}

/// Past the test's captured output.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[test]
fn all_commands_of_the_guide_work_from_first_to_last() {
    let blocks: Vec<_> = chapters(guide())
        .iter()
        .flat_map(|path| read(path).unwrap_or_else(|why| panic!("docs/admin-guide/{why}")))
        .collect();
    if let Some(why) = Machine::refused() {
        return say(&format!("SKIPPED: guide: {why}"));
    }
    let (last, most): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|block| block.options.last);
    let mut story = Story::new(3);
    most.iter().for_each(|block| story.follow(block));
    story.check_cluster();
    last.iter().for_each(|block| story.follow(block));
    story.report();
}
