//! The mistakes in `mutants/` can still be made: each patch applies to the sources as they are, so that `scripts/mutants`
//! has something to show. Whether the simulator finds them is what the script is for.
#![allow(clippy::expect_used, reason = "a failed test may panic anywhere")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// How `scripts/mutants` applies them.
const PATCH: [&str; 3] = ["--strip=1", "--fuzz=3", "--forward"];

#[test]
fn every_mistake_can_still_be_made() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).expect("crates/ is two levels below the root");
    let there = |program: &str| Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !there("patch") {
        eprintln!("SKIPPED: there is no program `patch`, so nobody knows whether the mistakes still apply");
        return;
    }
    let mut patches: Vec<_> = (fs::read_dir(here.join("mutants")).expect("the folder of mistakes"))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "patch"))
        .collect();
    patches.sort();
    assert!(patches.len() >= 12, "only {} mistakes are left", patches.len());
    let mut wrong = String::new();
    for path in &patches {
        let done = Command::new("patch")
            .args(PATCH)
            .args(["--dry-run", "--batch", "--reject-file=-"])
            .stdin(fs::File::open(path).expect("a patch"))
            .current_dir(root)
            .output()
            .expect("patch runs");
        if !done.status.success() {
            let name = path.strip_prefix(root).unwrap_or(path).display();
            let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
            wrong += &format!("\n{name} does not apply:\n{out}{err}");
        }
    }
    assert!(
        wrong.is_empty(),
        "{wrong}\nMake the same mistake in the code as it is now, write `git diff` over the patch, undo it, and let \
         `scripts/mutants NAME` show that the simulator still finds it"
    );
}
