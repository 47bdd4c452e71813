//! Compares two trees: names, types, modes, times, targets of symlinks, and every byte.
//!
//! # Limits
//! Something that somebody else changed since a moment is no difference: it is counted apart and not compared. Its
//! change time tells, which nobody can set.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File, Metadata},
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::fs::Time;

/// What a comparison found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Comparison {
    /// Objects that are not directories.
    pub(super) files: u64,
    pub(super) directories: u64,
    pub(super) bytes: u64,
    pub(super) differences: u64,
    /// Objects that somebody changed.
    pub(super) changed: u64,
    /// The first differences, in words.
    pub(super) first: Vec<String>,
}

/// Differences that are told in words.
const TOLD: usize = 10;

impl Comparison {
    fn differs(&mut self, path: &Path, what: impl AsRef<str>) {
        self.differences += 1;
        if self.first.len() < TOLD {
            self.first.push(format!("{}: {}", path.display(), what.as_ref()));
        }
    }
}

/// Compares a tree with its copy; names in `exclude` are left out. What changed since `since` (a change
/// time of some object, so that it is from the same clock) is not compared.
pub(super) fn trees(
    source: &Path,
    copy: &Path,
    exclude: &[Vec<u8>],
    since: SystemTime,
) -> Result<Comparison, (PathBuf, io::Error)> {
    let mut found = Comparison::default();
    let mut buffers = (vec![0; 1 << 17], vec![0; 1 << 17]);
    let mut stack = vec![(source.to_owned(), copy.to_owned())];
    while let Some((source, copy)) = stack.pop() {
        let changed = changed_since(&stat(&source)?, since);
        let excluded = |name: &OsString| exclude.iter().any(|e| e == name.as_bytes());
        let wanted: BTreeSet<OsString> = names(&source)?.into_iter().filter(|n| !excluded(n)).collect();
        for extra in names(&copy)?.difference(&wanted) {
            if changed {
                found.changed += 1;
            } else {
                found.differs(&copy.join(extra), "is in the copy only");
            }
        }
        for name in wanted {
            let (a, b) = (source.join(&name), copy.join(&name));
            stack.extend(object(&mut found, (&a, &b), since, changed, &mut buffers)?);
        }
    }
    Ok(found)
}

fn stat(path: &Path) -> Result<Metadata, (PathBuf, io::Error)> {
    fs::symlink_metadata(path).map_err(|e| (path.to_owned(), e))
}

fn names(dir: &Path) -> Result<BTreeSet<OsString>, (PathBuf, io::Error)> {
    let fail = |e| (dir.to_owned(), e);
    fs::read_dir(dir).map_err(fail)?.map(|entry| Ok(entry.map_err(fail)?.file_name())).collect()
}

/// When an object was last changed.
pub(super) fn change_time(meta: &Metadata) -> SystemTime {
    UNIX_EPOCH + Duration::new(u64::try_from(meta.ctime()).unwrap_or(0), meta.ctime_nsec() as u32)
}

fn changed_since(meta: &Metadata, since: SystemTime) -> bool {
    change_time(meta) >= since
}

/// Compares one object. Returns both paths if it is a directory on both sides.
fn object(
    found: &mut Comparison,
    (a, b): (&Path, &Path),
    since: SystemTime,
    dir_changed: bool,
    buffers: &mut (Vec<u8>, Vec<u8>),
) -> Result<Option<(PathBuf, PathBuf)>, (PathBuf, io::Error)> {
    let source = match stat(a) {
        Err((_, e)) if e.kind() == io::ErrorKind::NotFound => {
            found.changed += 1;
            return Ok(None);
        }
        source => source?,
    };
    let changed = changed_since(&source, since);
    let copy = match stat(b) {
        Err((_, e)) if e.kind() == io::ErrorKind::NotFound => {
            if changed || dir_changed {
                found.changed += 1;
            } else {
                found.differs(a, "is not in the copy");
            }
            return Ok(None);
        }
        copy => copy?,
    };
    if source.is_dir() && copy.is_dir() {
        found.directories += 1;
        if changed {
            found.changed += 1;
        } else {
            attributes(found, b, &source, &copy);
        }
        return Ok(Some((a.to_owned(), b.to_owned())));
    }
    found.files += 1;
    found.bytes += if source.is_file() { source.len() } else { 0 };
    if changed {
        found.changed += 1;
        return Ok(None);
    }
    if source.file_type() != copy.file_type() {
        found.differs(b, "has another type");
        return Ok(None);
    }
    attributes(found, b, &source, &copy);
    if source.is_symlink() {
        let target = |p: &Path| fs::read_link(p).map_err(|e| (p.to_owned(), e));
        if target(a)? != target(b)? {
            found.differs(b, "points elsewhere");
        }
    } else if source.is_file() {
        match first_difference(a, b, buffers) {
            Ok(None) => {}
            Ok(Some(at)) => found.differs(b, format!("differs from byte {at} on")),
            Err(e) => return Err((b.to_owned(), e)),
        }
    }
    Ok(None)
}

fn attributes(found: &mut Comparison, path: &Path, source: &Metadata, copy: &Metadata) {
    if source.mode() != copy.mode() && !source.is_symlink() {
        found.differs(
            path,
            format!("has mode {:o} instead of {:o}", copy.mode() & 0o7777, source.mode() & 0o7777),
        );
    }
    let time = |of: &Metadata| Time { secs: of.mtime(), nanos: of.mtime_nsec() as u32 };
    // As far as NFSv3 can say it.
    if Time::from(time(source).to_nfs()) != time(copy) {
        found.differs(path, "has another time of change");
    }
}

fn first_difference(a: &Path, b: &Path, (x, y): &mut (Vec<u8>, Vec<u8>)) -> io::Result<Option<u64>> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let mut at = 0;
    loop {
        let n = fill(&mut a, x)?;
        let m = fill(&mut b, y)?;
        let same = x[..n].iter().zip(&y[..m]).take_while(|(x, y)| x == y).count();
        if same < n.max(m) {
            return Ok(Some(at + same as u64));
        }
        if n == 0 {
            return Ok(None);
        }
        at += n as u64;
    }
}

/// Fills the buffer, except at the end of the file.
fn fill(file: &mut File, buf: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match file.read(&mut buf[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    /// A tree and an exact copy of it.
    fn twins() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let time = UNIX_EPOCH + Duration::new(1_700_000_000, 123);
        for side in ["a", "b"] {
            let top = dir.path().join(side);
            fs::create_dir_all(top.join("sub")).unwrap();
            fs::create_dir_all(top.join("skip")).unwrap();
            fs::write(top.join("sub/file"), vec![7; 300_000]).unwrap();
            fs::write(top.join("empty"), b"").unwrap();
            symlink("sub/file", top.join("link")).unwrap();
            for name in ["sub/file", "empty", "sub", "skip"] {
                File::open(top.join(name)).unwrap().set_modified(time).unwrap();
            }
            let stamp = rustix::fs::Timespec { tv_sec: 1_700_000_000, tv_nsec: 5 };
            let stamps = rustix::fs::Timestamps { last_access: stamp, last_modification: stamp };
            let nofollow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(rustix::fs::CWD, top.join("link"), &stamps, nofollow).unwrap();
        }
        dir
    }

    fn compare(dir: &tempfile::TempDir) -> Comparison {
        let later = SystemTime::now() + Duration::from_secs(3600);
        trees(&dir.path().join("a"), &dir.path().join("b"), &[b"skip".to_vec()], later).unwrap()
    }

    #[test]
    fn an_exact_copy_has_no_difference() {
        let dir = twins();
        fs::remove_dir(dir.path().join("b/skip")).unwrap();
        let found = compare(&dir);
        assert_eq!((found.differences, found.changed), (0, 0), "{:?}", found.first);
        assert_eq!((found.files, found.directories, found.bytes), (3, 1, 300_000));
    }

    /// Damages the copy in one way; exactly that must be found.
    fn damaged(how: impl FnOnce(&Path), told: &str) {
        let dir = twins();
        fs::remove_dir(dir.path().join("b/skip")).unwrap();
        how(&dir.path().join("b"));
        let found = compare(&dir);
        assert!(found.first.iter().any(|line| line.contains(told)), "{told}: {:?}", found.first);
        assert!(found.differences > 0);
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let flip = |top: &Path| {
            use std::os::unix::fs::FileExt as _;
            let path = top.join("sub/file");
            let time = fs::metadata(&path).unwrap().modified().unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(b"8", 200_000).unwrap();
            file.set_modified(time).unwrap();
        };
        damaged(flip, "from byte 200000");
        damaged(|top| fs::write(top.join("empty"), b"x").unwrap(), "from byte 0");
        damaged(
            |top| fs::set_permissions(top.join("empty"), fs::Permissions::from_mode(0o600)).unwrap(),
            "mode 600",
        );
        damaged(
            |top| File::open(top.join("sub")).unwrap().set_modified(SystemTime::now()).unwrap(),
            "time of change",
        );
        damaged(|top| fs::remove_file(top.join("empty")).unwrap(), "is not in the copy");
        damaged(|top| fs::write(top.join("sub/more"), b"").unwrap(), "is in the copy only");
        let relink = |top: &Path| {
            fs::remove_file(top.join("link")).unwrap();
            symlink("elsewhere", top.join("link")).unwrap();
        };
        damaged(relink, "points elsewhere");
        let retype = |top: &Path| {
            fs::remove_file(top.join("link")).unwrap();
            fs::write(top.join("link"), b"").unwrap();
        };
        damaged(retype, "another type");
    }

    #[test]
    fn what_somebody_changed_is_left_out() {
        let dir = twins();
        fs::remove_dir(dir.path().join("b/skip")).unwrap();
        fs::write(dir.path().join("b/empty"), b"old contents").unwrap();
        let earlier = SystemTime::now() - Duration::from_secs(3600);
        let found =
            trees(&dir.path().join("a"), &dir.path().join("b"), &[b"skip".to_vec()], earlier).unwrap();
        assert_eq!(found.differences, 0, "{:?}", found.first);
        assert_eq!(found.changed, 4);
    }
}
