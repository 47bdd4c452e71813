//! `demo` and `bench`, small.

use std::fs;

use crate::support::{Serving, fails, ok, plant, run};

#[test]
fn the_demo_passes_with_cuts_and_reports_them() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).unwrap();
    plant(&tree);
    let to = scratch.path().join("to");
    fs::create_dir(&to).unwrap();
    let args = ["demo", "--cuts", "20", "--to", to.to_str().unwrap(), tree.to_str().unwrap()];
    let said = ok(args);
    assert!(said.contains("PASS  every byte, mode and time is the same"), "{said}");
    for word in ["calls", "one-Call start", "in flight", "latency", "retransmitted", "reconnects"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert_eq!(fs::read_dir(&to).unwrap().count(), 0, "nothing is left behind");

    let said = ok([&args[..], &["--json"]].concat());
    let record: serde_json::Value = serde_json::from_str(&said).unwrap();
    let number = |name: &str| record[name].as_u64().unwrap_or_else(|| panic!("{name}: {said}"));
    assert!(number("cuts") >= 20 && number("reconnects") > 0 && number("retransmissions") > 0, "{said}");
    assert_eq!(number("differences") + number("failures") + number("early_sends") + number("overruns"), 0);
    assert_eq!(number("single_call_starts"), number("answered_connections"));
    assert!(number("most_in_flight") <= number("most_granted"));
    assert_eq!(number("files"), 314);
}

#[test]
fn the_demo_fails_where_it_cannot_do_what_is_wanted() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let ended = run(["demo", tree.to_str().unwrap()]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.contains("FAIL  only 0 of 24 cuts happened"), "{ended:?}");
    let said = fails(1, ["demo", "--to", tree.to_str().unwrap(), scratch.path().to_str().unwrap()]);
    assert!(said.contains("inside the tree"), "{said}");
    let said = fails(1, ["demo", "/does/not/exist"]);
    assert!(said.contains("No such file"), "{said}");
}

#[test]
fn the_benchmark_compares() {
    let args = ["bench", "--pairs", "1", "--seconds", "0.02", "--size", "4M", "--json"];
    let said = ok(args);
    let rows: Vec<serde_json::Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows.len(), 18, "nine measurements, without and with CRC");
    for row in &rows {
        assert!(row["ratio"].as_f64().unwrap() > 0.0 && row["rate"].as_f64().unwrap() > 0.0, "{row}");
    }
    assert_eq!(rows[0]["transport"], "iWARP/TCP, no CRC");
    assert_eq!(rows[9]["transport"], "iWARP/TCP, CRC32c");
    let said =
        ok(["bench", "--pairs", "1", "--seconds", "0.02", "--size", "1M", "--only", "null", "--crc", "on"]);
    assert_eq!(said.lines().filter(|l| l.starts_with("NULL")).count(), 2, "{said}");
    fails(2, ["bench", "--size", "5"]);
}

#[test]
fn the_benchmark_measures_a_server_elsewhere() {
    let server = Serving::unsquashed();
    let short = ["--pairs", "1", "--seconds", "0.02", "--size", "2M"];
    let said =
        ok([&["bench", "--json", "--only", "read,getattr", "--url", &server.url("")][..], &short].concat());
    let rows: Vec<serde_json::Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|r| r.get("ratio").is_none() && r["rate"].as_f64().unwrap() > 0.0), "{said}");
    assert_eq!(fs::read_dir(&server.dir).unwrap().count(), 0, "the file is removed");
}
