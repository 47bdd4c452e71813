//! Documents that were made by our programs still say what these programs would.
#![allow(clippy::expect_used, reason = "a document that cannot be read fails the test")]

use std::{fs, path::Path};

use rpcrdma::probe::CHECKS;

#[test]
fn the_report_on_linux_has_every_check_and_no_other() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/probe-linux.md");
    let text = fs::read_to_string(&path).expect("the report");
    let verdict = |line: &&str| {
        ["conforms", "tolerated", "deviates"].iter().any(|v| line.starts_with(&format!("  {v} ")))
    };
    let found: Vec<String> = text
        .lines()
        .filter(verdict)
        .map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
        .collect();
    let checks: Vec<String> =
        CHECKS.into_iter().flatten().map(|c| format!("{} {}", c.section, c.title)).collect();
    assert_eq!(found, checks, "probe Linux again and put the report into {}", path.display());
}
