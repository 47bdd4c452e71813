//! Runs every target on its committed corpus, without a fuzzing engine, and on damaged copies of what the corpus is made from.

use std::{collections::BTreeSet, fs, path::Path};

use rpcrdma_fuzz::{TARGETS, seeds, target};

fn corpus() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus"))
}

/// With `WRITE_CORPUS` set in the environment the files are written. Their content is not compared: a seed that the
/// code would make otherwise today is still a good seed.
#[test]
fn every_seed_is_in_the_committed_corpus() {
    let seeds = seeds::all();
    let names: BTreeSet<_> = seeds.iter().map(|s| (s.target, s.name.clone())).collect();
    assert_eq!(names.len(), seeds.len(), "every seed has a name of its own");
    for seed in seeds {
        let dir = corpus().join(seed.target);
        let path = dir.join(&seed.name);
        if std::env::var_os("WRITE_CORPUS").is_some() {
            fs::create_dir_all(&dir).unwrap();
            fs::write(&path, &seed.bytes).unwrap();
        }
        assert!(path.exists(), "{} is missing; WRITE_CORPUS=1 writes it", path.display());
    }
}

#[test]
fn every_target_survives_its_corpus() {
    for (name, run) in TARGETS {
        let mut files = 0;
        for entry in fs::read_dir(corpus().join(name)).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            run(&bytes);
            files += 1;
        }
        assert!(files > 0, "{name} has a corpus");
    }
}

#[test]
fn every_target_survives_damaged_seeds() {
    for seed in seeds::all() {
        let run = target(seed.target);
        for cut in 0..seed.bytes.len().min(200) {
            run(&seed.bytes[..cut]);
        }
        let mut bytes = seed.bytes.clone();
        for at in (0..bytes.len()).step_by(1 + seed.bytes.len() / 100) {
            for bit in [0x01, 0x80] {
                bytes[at] ^= bit;
                run(&bytes);
                bytes[at] ^= bit;
            }
        }
    }
}

#[test]
fn every_target_has_a_binary() {
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} has no binary");
    }
}
