//! A chunk server with many chunks starts in time and within its memory: a tenth of the full size, as CI can wait for.

use std::path::Path;
use std::process::Command;

#[test]
fn a_hundred_thousand_chunks_start_soon_and_within_a_gigabyte() {
    pstorage_tests::processes::programs();
    // On a disk: the system's temporary directory may lie in memory.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("store-scale-{}", std::process::id()));
    let ended = Command::new(env!("CARGO_BIN_EXE_store-scale"))
        .arg(&dir)
        .args(["--chunks", "100000", "--capacity", "16T", "--most-s", "10", "--most-memory", "500M"])
        .output()
        .expect("store-scale runs");
    let text =
        format!("{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    let _ = std::fs::remove_dir_all(&dir);
    println!("{text}");
    assert!(ended.status.success() && text.contains("second start: listens after"), "{text}");
}
