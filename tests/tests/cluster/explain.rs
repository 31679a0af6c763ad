//! States of chunks in `stat` and `get-attr`, and `explain` of files, chunks and servers, on a cluster that loses servers.

use crate::common::{self, Cluster, pattern, wait_until, write_synced};
use serde_json::Value;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn text_of(list: &Value) -> String {
    let lines = list.as_array().expect("a list of sentences");
    lines.iter().map(|l| l.as_str().expect("a sentence").to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn states_and_stories_follow_what_happens_to_the_servers() {
    let c = Cluster::new("explain");
    c.up_with(&["--cs", "3", "--replicas", "3:2", "--capacity", "1G"]);
    c.admin(&["set-attr", "/", "chunk-size=1M"]);
    write_synced(&c.mnt("image"), &pattern(3, 512));
    c.wait_healthy();

    let attr = c.json(&["get-attr", "/image"]);
    // The mount has chunks placed ahead of what is written.
    let total = attr["chunks"]["total"].as_u64().unwrap();
    assert!(total >= 2 && attr["chunks"]["healthy"] == total, "{attr:#}");
    assert!(c.admin(&["stat"]).contains(&format!("Chunks: [OK] {total} (100.00%) healthy")));
    let story = c.json(&["explain", "/image"]);
    let chunk = story["chunks"][0]["chunk"].as_u64().unwrap().to_string();
    let leader = story["chunks"][0]["primary"].as_u64().unwrap();
    assert_eq!((&story["replicas"], &story["chunks"][0]["state"]), (&"3:2".into(), &"healthy".into()));
    assert!(c.admin(&["explain", &chunk]).contains("Nothing is wrong."));

    // One away: it is waited for. Nobody writes, so the sets stay.
    let others: Vec<u64> = (1..=3).filter(|n| *n != leader).collect();
    c.kill(&format!("cs{}", others[0]));
    let state = |word: &str| c.json(&["get-attr", "/image"])["chunks"][word].as_u64().unwrap();
    wait_until("standby", PATIENCE, || state("standby") == total);
    let told = c.json(&["explain", &chunk]);
    assert_eq!((&told["state"], &told["path"]), (&"standby".into(), &"/image".into()), "{told:#}");
    let away = format!("CS#{}", others[0]);
    assert!(text_of(&told["wrong"]).contains(&away), "{told:#}");
    assert!(text_of(&told["next"]).contains("mds.wd.offline_tout"), "{told:#}");
    let server = c.json(&["explain", &away]);
    assert_eq!(
        (&server["server"]["status"], &server["states"]["standby"]),
        (&"inactive".into(), &total.into())
    );

    // Two away: fewer than the minimum.
    c.kill(&format!("cs{}", others[1]));
    wait_until("blocked", PATIENCE, || state("blocked") == total);
    assert!(text_of(&c.json(&["explain", &chunk])["wrong"]).contains("writes need 2, and wait"));
    assert!(c.admin(&["stat"]).contains("Chunks: [ERROR]"));

    // All away.
    c.kill(&format!("cs{leader}"));
    wait_until("offline", PATIENCE, || state("offline") == total);
    let told = c.json(&["explain", &chunk]);
    assert!(text_of(&told["next"]).contains("Start the server of"), "{told:#}");
    let text = c.admin(&["explain", "/image"]);
    assert!(text.contains("reads and writes wait") && text.contains("STATE"), "{text}");

    c.up_with(&[]);
    c.wait_healthy();
    assert_eq!(state("healthy"), total);
}

#[test]
fn what_is_not_there_is_explained_too() {
    let c = Cluster::new("explain_none");
    c.up_with(&["--mds", "1", "--cs", "1", "--capacity", "1G"]);
    let etc = c.dir.path("etc");
    for (what, says) in [
        ("/none", "/none"),
        ("/", "not a regular file"),
        ("7000000", "there never was a chunk 7000000"),
        ("CS#70", "there is no CS#70"),
    ] {
        let ended = common::run("pstorage", &["-c", "local", "--etc", &etc, "explain", what]);
        assert!(ended.code != 0 && ended.text.contains(says), "{what}: {}", ended.text);
    }
}
