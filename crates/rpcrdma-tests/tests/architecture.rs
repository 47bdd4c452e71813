//! The rules that no single crate can keep alone: which crate may know which, and where `unsafe` may be.
//!
//! # Operation
//! The first tests read the workspace's manifests through `cargo metadata` (without resolving anything, so without a
//! network), the others read the sources as text, with comments and literals blanked out.
//!
//! # Dependencies for tests
//! A `[dev-dependencies]` arrow may skip rooms but never points upward: a crate's tests may use whatever the crate
//! could reach anyway. Tests that need more live in `rpcrdma-tests`, which may use everything and is used by nobody.

#![allow(clippy::expect_used, reason = "a manifest or source file that cannot be read fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// Who may depend on whom.
const ARROWS: &[(&str, &[&str])] = &[
    ("rpcrdma-cli", &["rpcrdma-fuse", "rpcrdma-verbs", "rpcrdma-sim", "rpcrdma"]),
    ("rpcrdma-fuse", &["rpcrdma"]),
    ("rpcrdma-sim", &["rpcrdma"]),
    ("rpcrdma", &["rpcrdma-nfs", "rpcrdma-proto", "rpcrdma-fabric", "softiwarp"]),
    ("rpcrdma-nfs", &["rpcrdma-proto"]),
    ("softiwarp", &["rpcrdma-fabric"]),
    ("rpcrdma-verbs", &["rpcrdma-fabric"]),
    ("rpcrdma-proto", &[]),
    ("rpcrdma-fabric", &[]),
];

/// The crate of whole-system tests: depends on anything, and nothing depends on it.
const TESTS: &str = "rpcrdma-tests";

/// What the crates without I/O may take from outside. Neither opens a file, reads a clock or draws a random number.
const PURE: &[(&str, &[&str])] =
    &[("rpcrdma-proto", &["siphasher", "smallvec"]), ("rpcrdma-nfs", &["smallvec"])];

/// The only files that may contain `unsafe`, each with the reason why it has to.
const UNSAFE: &[(&str, &str)] = &[
    ("crates/rpcrdma-fabric/src/region.rs", "disjoint ranges of one heap block"),
    ("crates/rpcrdma-verbs/src/ffi/mod.rs", "functions of the RDMA libraries"),
    ("crates/rpcrdma-verbs/src/ffi/fake.rs", "the same functions, played for tests"),
    ("crates/rpcrdma-verbs/src/ffi/verbs.rs", "types of the devices' functions"),
    ("crates/rpcrdma-verbs/src/sys/mod.rs", "descriptors that the RDMA libraries own"),
    ("crates/rpcrdma-verbs/src/sys/alarm.rs", "what RDMA devices report by themselves"),
    ("crates/rpcrdma-verbs/src/sys/interface.rs", "the addresses of network interfaces"),
    ("crates/rpcrdma-verbs/src/sys/cm.rs", "the RDMA connection manager"),
    ("crates/rpcrdma-verbs/src/sys/device.rs", "RDMA devices and registered memory"),
    ("crates/rpcrdma-verbs/src/sys/queue.rs", "queue pairs and completion queues"),
    ("crates/rpcrdma-verbs/src/qp.rs", "posting work on memory that the device uses"),
    ("crates/rpcrdma/src/export/local/sys.rs", "system calls that no well-kept crate wraps"),
];

/// Beyond this a source file has lost its subject.
const LINES_MAX: usize = 1000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("crates/ is two levels below the root")
        .into()
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(vec!["--offline".into()])
        .exec()
        .expect("cargo metadata reads the manifests")
}

/// The crates of this workspace that a package depends on.
fn ours<'a>(of: &'a Package, members: &'a BTreeSet<String>, dev: bool) -> impl Iterator<Item = &'a str> {
    of.dependencies
        .iter()
        .filter(move |d| (d.kind == DependencyKind::Development) == dev)
        .map(|d| d.name.as_str())
        .filter(|name| members.contains(*name))
}

/// Everything that can be reached from `from` along allowed arrows.
fn reachable(from: &str, arrows: &BTreeMap<&str, &[&'static str]>) -> BTreeSet<&'static str> {
    let mut seen = BTreeSet::new();
    let mut next: Vec<&str> = arrows[from].to_vec();
    while let Some(name) = next.pop() {
        if let Some((known, below)) = arrows.get_key_value(name) {
            let known = ARROWS.iter().map(|(n, _)| *n).find(|n| n == known).expect("a name of the table");
            if seen.insert(known) {
                next.extend_from_slice(below);
            }
        }
    }
    seen
}

#[test]
fn crates_depend_only_along_the_allowed_arrows() {
    let metadata = metadata();
    let members: BTreeSet<String> = metadata.packages.iter().map(|p| p.name.to_string()).collect();
    let arrows: BTreeMap<&str, &[&'static str]> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        if name == TESTS {
            continue;
        }
        let Some(allowed) = arrows.get(name) else {
            wrong.push(format!("{name} has no place in the table of arrows"));
            continue;
        };
        for to in ours(package, &members, false).filter(|to| !allowed.contains(to)) {
            wrong.push(format!("{name} -> {to}"));
        }
        let below = reachable(name, &arrows);
        for to in ours(package, &members, true).filter(|to| !below.contains(to)) {
            wrong.push(format!("{name} -> {to} (dev-dependency)"));
        }
    }
    assert!(wrong.is_empty(), "arrows that are not allowed:\n  {}", wrong.join("\n  "));
    for must in [
        "rpcrdma-proto",
        "rpcrdma-nfs",
        "rpcrdma-fabric",
        "softiwarp",
        "rpcrdma",
        "rpcrdma-sim",
        "rpcrdma-cli",
        TESTS,
    ] {
        assert!(
            members.contains(must),
            "{must} is not in the workspace, so the table above checked nothing of it"
        );
    }
}

#[test]
fn crates_without_io_depend_on_nothing_that_does_io() {
    let metadata = metadata();
    let members: BTreeSet<String> = metadata.packages.iter().map(|p| p.name.to_string()).collect();
    for (name, allowed) in PURE {
        let package = metadata.packages.iter().find(|p| p.name.as_str() == *name).expect("a member");
        let outside: Vec<&str> = package
            .dependencies
            .iter()
            .filter(|d| d.kind != DependencyKind::Development)
            .map(|d| d.name.as_str())
            .filter(|d| !members.contains(*d) && !allowed.contains(d))
            .collect();
        assert!(outside.is_empty(), "{name} does no I/O and may not depend on {outside:?}");
        let lib = fs::read_to_string(root().join("crates").join(name).join("src/lib.rs")).expect("a lib.rs");
        assert!(lib.lines().any(|l| l.trim() == "#![no_std]"), "{name} must be no_std");
        assert!(lib.lines().any(|l| l.trim() == "#![forbid(unsafe_code)]"), "{name} must forbid unsafe code");
        assert!(!code(&lib).contains("extern crate std"), "{name} must be no_std");
    }
}

#[test]
fn every_crate_obeys_the_workspace_lints() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the root manifest");
    assert!(
        manifest.lines().any(|l| l.trim() == "unsafe_code = \"deny\""),
        "the workspace must deny unsafe code"
    );
    for package in metadata().packages {
        let text = fs::read_to_string(&package.manifest_path).expect("a member's manifest");
        let inherits = text.split("\n[").any(|table| {
            table.trim_start_matches('[').starts_with("lints]") && table.contains("workspace = true")
        });
        assert!(inherits, "{} does not inherit the workspace's lints", package.name);
    }
}

#[test]
fn unsafe_stays_where_it_is_argued_for() {
    let mut found = BTreeSet::new();
    for (path, text) in sources() {
        let code = code(&text);
        let listed = UNSAFE.iter().any(|(p, _)| *p == path);
        if words(&code).any(|w| w == "unsafe") {
            assert!(listed, "{path} contains `unsafe` and is not on the list");
            found.insert(path.clone());
        }
        for line in code.lines().filter(|l| l.contains("unsafe_code") && l.contains("allow")) {
            assert!(listed, "{path} may not say {line}");
        }
    }
    for (path, why) in UNSAFE {
        assert!(found.contains(*path), "{path} ({why}) has no `unsafe` any more: take it off the list");
    }
}

#[test]
fn nothing_is_left_to_do_later() {
    for (path, text) in sources() {
        let code = code(&text);
        for stub in ["todo!", "unimplemented!", "dbg!"] {
            assert!(!code.contains(stub), "{path} contains {stub}");
        }
    }
}

#[test]
fn source_files_have_one_subject() {
    for (path, text) in sources().into_iter().filter(|(path, _)| path.contains("/src/")) {
        let lines = text.lines().count();
        assert!(
            lines <= LINES_MAX,
            "{path} has {lines} lines; more than {LINES_MAX} is more than one subject"
        );
    }
}

#[test]
fn every_source_file_says_what_it_is() {
    for (path, text) in sources() {
        let test_code = path.contains("/tests") || path.ends_with("tests.rs") || path.ends_with("testing.rs");
        if !test_code {
            assert!(text.starts_with("//!"), "{path} does not begin with a description of itself");
        }
    }
}

#[test]
fn the_compliance_table_names_what_exists() {
    let table = fs::read_to_string(root().join("docs/compliance.md")).expect("the compliance table");
    let sources = sources();
    let mut names = 0;
    // Every second piece stands between backticks.
    for name in table.split('`').skip(1).step_by(2) {
        let is_word = |w: &str| w.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        let exists = if name.ends_with(".rs") {
            sources.iter().any(|(path, _)| path.ends_with(&format!("/{name}")))
        } else if is_word(name) {
            let function = format!("fn {name}(");
            let target = root().join("fuzz/fuzz_targets").join(name).with_extension("rs");
            target.exists() || sources.iter().any(|(_, text)| text.contains(&function))
        } else if let Some((_, member)) = name.rsplit_once("::") {
            sources.iter().any(|(_, text)| words(text).any(|w| w == member))
        } else {
            continue;
        };
        assert!(exists, "docs/compliance.md speaks of `{name}`, which does not exist");
        names += 1;
    }
    assert!(names > 50, "only {names} names were found in the table");
}

#[test]
fn blanking_out_hides_literals_and_comments_only() {
    let text = r###"
        // unsafe in a comment, "and a quote
        /* unsafe /* nested */ unsafe */ let a = "unsafe \" unsafe"; let b = r#"unsafe " "#; let c = '"'; let d = b'\'';
        fn f<'a>(x: &'a str) -> &'a str { x } // 'unsafe'
        unsafe { live() }
    "###;
    let code = code(text);
    assert_eq!(words(&code).filter(|w| *w == "unsafe").count(), 1, "{code}");
    assert!(words(&code).any(|w| w == "live"));
    assert_eq!(code.lines().count(), text.lines().count());
}

/// Every Rust file of the workspace, by its path from the root.
fn sources() -> Vec<(String, String)> {
    let root = root();
    let mut files = Vec::new();
    let mut dirs = vec![root.join("crates")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("a readable source directory") {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
                files.push((name, fs::read_to_string(&path).expect("source text")));
            }
        }
    }
    assert!(files.len() > 50, "only {} source files were found", files.len());
    files
}

/// The identifiers and keywords of a text.
fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty())
}

/// A source text whose comments, strings and characters are blank; lines stay lines.
fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match &bytes[at..] {
            [b'/', b'/', ..] => line_end(bytes, at),
            [b'/', b'*', ..] => comment_end(bytes, at),
            [b'"', ..] => string_end(bytes, at),
            [b'r', b'"' | b'#', ..] if !is_word_before(bytes, at) => raw_end(bytes, at).unwrap_or(at),
            [b'\'', ..] => char_end(bytes, at).unwrap_or(at),
            _ => at,
        };
        for byte in out[at..end].iter_mut().filter(|b| **b != b'\n') {
            *byte = b' ';
        }
        at = end.max(at + 1);
    }
    String::from_utf8(out).expect("only whole literals are blanked")
}

fn is_word_before(bytes: &[u8], at: usize) -> bool {
    // `br"` and `cr"` are raw strings too.
    at > 0 && bytes[at - 1].is_ascii_alphanumeric() && !matches!(bytes[at - 1], b'b' | b'c')
        || at > 0 && bytes[at - 1] == b'_'
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| at + n)
}

fn comment_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0usize;
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string_end(bytes: &[u8], mut at: usize) -> usize {
    at += 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn raw_end(bytes: &[u8], at: usize) -> Option<usize> {
    let hashes = bytes[at + 1..].iter().take_while(|b| **b == b'#').count();
    let open = at + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None; // a raw identifier
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let body = &bytes[open + 1..];
    let len = body.windows(close.len()).position(|w| w == close)?;
    Some(open + 1 + len + close.len())
}

/// The end of a character literal; `None` for a lifetime.
fn char_end(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes.get(at + 1) == Some(&b'\\') {
        let len = bytes[at + 3..].iter().position(|b| *b == b'\'')?;
        return Some(at + 3 + len + 1);
    }
    let text = std::str::from_utf8(&bytes[at + 1..]).ok()?;
    let first = text.chars().next()?;
    let end = at + 1 + first.len_utf8();
    (bytes.get(end) == Some(&b'\'')).then_some(end + 1)
}
