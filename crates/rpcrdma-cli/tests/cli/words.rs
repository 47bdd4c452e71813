//! Help, completions and manual pages.

use std::fs;

use crate::support::{fails, ok, run};

const COMMANDS: [&str; 13] =
    ["serve", "ls", "cat", "stat", "cp", "rm", "mkdir", "df", "ping", "demo", "bench", "completions", "man"];

#[test]
fn every_command_has_help_with_an_example() {
    let said = ok(["--help"]);
    for command in COMMANDS {
        assert!(said.contains(&format!("\n  {command} ")), "{command}: {said}");
        for help in [vec![command, "--help"], vec!["help", command]] {
            let said = ok(help);
            assert!(said.contains("Usage: rpcrdma ") && said.contains("Example"), "{said}");
            assert!(said.lines().all(|l| l.chars().count() <= 100), "{said}");
        }
    }
    assert!(ok(["--version"]).starts_with("rpcrdma "));
}

#[test]
fn connection_options_are_the_same_everywhere() {
    for command in ["ls", "cat", "stat", "cp", "rm", "mkdir", "df", "ping"] {
        let said = ok([command, "--help"]);
        for option in [
            "--tcp",
            "--mount-port",
            "--nconnect",
            "--credits",
            "--crc",
            "--peer-to-peer",
            "--inline",
            "--timeout",
            "--inject",
            "--uid",
            "--gid",
        ] {
            assert!(said.contains(option), "{command} {option}");
        }
    }
}

#[test]
fn unknown_words_are_wrong_usage() {
    assert_eq!(run::<&str>([]).code, Some(2));
    fails(2, ["mount"]);
    fails(2, ["ls"]);
    let said = fails(2, ["ls", "server:/x"]);
    assert!(said.contains("nfs://host[:port]"), "{said}");
}

#[test]
fn completions_and_manual_pages_cover_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = ok(["completions", shell]);
        for command in COMMANDS {
            assert!(script.contains(command), "{shell} {command}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    ok(["man", dir.path().join("man1").to_str().unwrap()]);
    for command in COMMANDS {
        let page = fs::read_to_string(dir.path().join(format!("man1/rpcrdma-{command}.1"))).unwrap();
        assert!(page.contains(".SH NAME"));
    }
    assert!(dir.path().join("man1/rpcrdma.1").exists());
}
