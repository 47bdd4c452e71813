//! `sim`.

use std::fs;

use crate::support::{fails, ok};

#[test]
fn sim_shows_how_a_connection_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let picture = dir.path().join("cut.svg");
    let args =
        ["sim", "--cuts", "150=reset", "--timeline", "--rows", "0", "--svg", picture.to_str().unwrap()];
    let said = ok(args);
    assert_eq!(said, ok(args), "a seed always does the same");
    let (before, after) = said.split_once("a reset before the step").expect("the cut is shown");
    for part in [before, after] {
        let opens = part.find("the window opens: 1 to 8").expect("the window opens");
        let connected = part[..opens].rfind("is connected ┝").expect("it is connected before");
        assert!(!part[connected..opens].contains("●●"), "one Call until then: {part}");
    }
    assert!(after.contains("PASS"), "{after}");
    let svg = fs::read_to_string(&picture).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("the window opens"));
}

#[test]
fn sim_runs_many_seeds_and_many_cuts() {
    let said = ok(["sim", "--seeds", "6", "--seed", "40", "--jobs", "1", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((report["runs"].as_u64(), report["failed"].as_u64()), (Some(6), Some(0)));
    assert!(report["pairs_reached"].as_u64().unwrap() > 50, "{report}");
    assert_eq!(report["pairs_that_cannot_happen_and_did"].as_array().map(Vec::len), Some(0));
    let said = ok(["sim", "--cuts", "each", "--workload", "minute", "--jobs", "1"]);
    assert!(said.contains("a reset at each of the") && said.contains("PASS"), "{said}");
}

#[test]
fn sim_says_what_is_wrong_with_its_arguments() {
    for (args, part) in [
        (["--cuts", "5=flood"], "`flood` is not one of"),
        (["--world", "wet"], "there are: quiet, narrow, random"),
        (["--workload", "work"], "no such workload"),
        (["--time", "soon"], "90s, 10m, 2h"),
    ] {
        let said = fails(2, ["sim", args[0], args[1]]);
        assert!(said.contains(part), "{args:?}: {said}");
    }
}
