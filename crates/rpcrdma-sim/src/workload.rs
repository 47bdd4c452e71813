//! What clients do: every operation has to succeed, exactly once.

use std::{net::IpAddr, sync::Arc};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use rpcrdma::{
    client::Mount,
    fabric::Region,
    nfs::v3::{CreateMode, Handle, Proc, SetAttributes, Stable},
    proto::rpcrdma::{Body, ChunkLists, Credits, Header, RdmaError, Xid},
};
use tokio::task::JoinSet;

use crate::{
    odd::{self, Raw},
    rig::{SERVER, World, client},
};

/// Bytes that tell their place.
#[must_use]
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| (i.wrapping_mul(31).wrapping_add(seed.wrapping_mul(7)) >> 2) as u8 ^ seed as u8)
        .collect()
}

/// How a workload ends: with a sentence if something was not as it should be.
pub type Result<T = (), E = String> = std::result::Result<T, E>;

fn failed(what: &str, e: impl std::fmt::Display) -> String {
    format!("{what} failed: {e}")
}

/// Creates a file that must not be there.
pub async fn create(w: &World, mount: &Mount, name: &str) -> Result<Handle> {
    let how = CreateMode::Guarded(SetAttributes::default());
    let made = w.once(Proc::Create, mount.create(mount.root(), name.as_bytes(), how)).await;
    made.map_err(|e| failed(&format!("CREATE {name}"), e))?
        .object
        .ok_or_else(|| "CREATE without a handle".to_owned())
}

/// Writes all of `data`.
pub async fn write(w: &World, mount: &Mount, file: Handle, offset: u64, data: &[u8]) -> Result {
    let region = Region::from(data);
    let (done, region) =
        w.operation(mount.write(file, offset, data.len() as u32, region, Stable::FileSync)).await;
    let done = done.map_err(|e| failed("WRITE", e))?;
    if region.as_deref() != Some(data) {
        return Err("WRITE does not give its memory back as it was".to_owned());
    }
    if done.count as usize == data.len() { Ok(()) } else { Err(format!("{} bytes written", done.count)) }
}

/// Reads, and compares with what should be there up to the end of the file.
pub async fn read(w: &World, mount: &Mount, file: Handle, offset: u64, wanted: &[u8]) -> Result {
    // Some room to spare, which must stay as it is.
    let mut room = Region::alloc(wanted.len() + 100);
    let mut have = 0;
    loop {
        room.fill(0xee);
        let asked = (wanted.len() - have) as u32 + 50;
        let (done, region) = w.operation(mount.read(file, offset + have as u64, asked, room)).await;
        let done = done.map_err(|e| failed("READ", e))?;
        let region = region.ok_or("READ does not give its memory back")?;
        let len = done.len as usize;
        if have + len > wanted.len() || (len == 0 && !done.eof) {
            return Err(format!(
                "READ of {} bytes brought {have} and {len} (eof {})",
                wanted.len(),
                done.eof
            ));
        }
        if region[..len] != wanted[have..have + len] {
            return Err(format!("READ brought other bytes than were written ({len} bytes)"));
        }
        if region[asked as usize..].iter().any(|b| *b != 0xee) {
            return Err("READ touched memory beyond what it was given".to_owned());
        }
        // A server short of memory may bring less than there is.
        have += len;
        if done.eof {
            break;
        }
        room = region;
    }
    if have == wanted.len() {
        Ok(())
    } else {
        Err(format!("a file of {} bytes ends at {have}", wanted.len()))
    }
}

/// One file: created, written, read, renamed, removed.
pub async fn tiny(w: Arc<World>) -> Result {
    let mount = w.mount(client(1)).await;
    let file = create(&w, &mount, "a").await?;
    let data = pattern(w.seed, 5000);
    write(&w, &mount, file, 0, &data).await?;
    read(&w, &mount, file, 0, &data).await?;
    let root = mount.root();
    w.once(Proc::Rename, mount.rename((root, b"a"), (root, b"b"))).await.map_err(|e| failed("RENAME", e))?;
    w.once(Proc::Remove, mount.remove(root, b"b")).await.map_err(|e| failed("REMOVE", e))?;
    Ok(())
}

/// The shortest workload with everything that can go wrong: a guarded CREATE and its REMOVE.
pub async fn minute(w: Arc<World>) -> Result {
    let mount = w.mount(client(1)).await;
    create(&w, &mount, "a").await?;
    w.once(Proc::Remove, mount.remove(mount.root(), b"a")).await.map_err(|e| failed("REMOVE", e))?;
    Ok(())
}

/// Twelve callers with four GETATTRs each: as many Calls at one time as the window lets through.
pub async fn burst(w: Arc<World>) -> Result {
    let mount = w.mount(client(1)).await;
    let mut tasks = JoinSet::new();
    for _ in 0..12 {
        let (w, mount) = (Arc::clone(&w), mount.clone());
        tasks.spawn(async move {
            for _ in 0..4 {
                w.operation(mount.getattr(mount.root())).await.map_err(|e| failed("GETATTR", e))?;
            }
            Ok(())
        });
    }
    join(&mut tasks).await
}

/// Several Calls of each shape at one time.
pub async fn shapes(w: Arc<World>) -> Result {
    let mount = w.mount(client(1)).await;
    let mut tasks = JoinSet::new();
    for nth in 0..3 {
        let (w, mount) = (Arc::clone(&w), mount.clone());
        tasks.spawn(async move { shapes_once(&w, &mount, nth).await });
    }
    join(&mut tasks).await
}

async fn shapes_once(w: &World, mount: &Mount, nth: u64) -> Result {
    let root = mount.root();
    let name = format!("{}-{nth}", "n".repeat(100));
    let target = "t".repeat(1000);
    let made = w
        .once(
            Proc::SymLink,
            mount.symlink(root, name.as_bytes(), target.as_bytes(), SetAttributes::default()),
        )
        .await;
    let link = made.map_err(|e| failed("SYMLINK", e))?.object.ok_or("SYMLINK without a handle")?;
    let got = w.operation(mount.readlink(link)).await.map_err(|e| failed("READLINK", e))?;
    if got != target.as_bytes() {
        return Err("READLINK brought another target".to_owned());
    }
    let page = w.operation(mount.readdirplus(root, 0, Default::default(), 16384)).await;
    let page = page.map_err(|e| failed("READDIRPLUS", e))?;
    if !page.entries.iter().any(|e| e.name == name.as_bytes()) {
        return Err("READDIRPLUS does not list what was made".to_owned());
    }
    w.once(Proc::Remove, mount.remove(root, name.as_bytes())).await.map_err(|e| failed("REMOVE", e))?;
    Ok(())
}

/// Several workers on one or two clients, with operations and sizes by the dice.
pub async fn mixed(w: Arc<World>) -> Result {
    let mut rng = SmallRng::seed_from_u64(w.seed ^ 0x3013);
    let clients = rng.random_range(1..=2u8);
    let mut tasks = JoinSet::new();
    for node in 1..=clients {
        let workers = rng.random_range(1..=6u64);
        let rounds = rng.random_range(1..=4u64);
        let seed: u64 = rng.random();
        let w = Arc::clone(&w);
        tasks.spawn(async move {
            let mount = w.mount(client(node)).await;
            let mut tasks = JoinSet::new();
            for worker in 0..workers {
                let (w, mount) = (Arc::clone(&w), mount.clone());
                let mut rng = SmallRng::seed_from_u64(seed ^ worker);
                tasks.spawn(async move {
                    for round in 0..rounds {
                        let name = format!("c{node}-w{worker}-r{round}");
                        one_round(&w, &mount, &name, &mut rng).await?;
                    }
                    Ok(())
                });
            }
            join(&mut tasks).await?;
            match mount.pools().in_use() {
                0 => Ok(()),
                left => Err(format!("{left} bytes of a client's pools are in use when nothing is under way")),
            }
        });
    }
    if rng.random_range(0..4) == 0 {
        let w = Arc::clone(&w);
        tasks.spawn(async move { nonsense(&w, rng).await });
    }
    join(&mut tasks).await?;
    // Nothing is left, so everything that was made was removed once.
    let mount = w.mount(client(9)).await;
    let page = w.operation(mount.readdir(mount.root(), 0, Default::default(), 4096)).await;
    let page = page.map_err(|e| failed("READDIR", e))?;
    if !page.entries.is_empty() {
        return Err(format!("{} names are left", page.entries.len()));
    }
    w.executed_once()
}

/// Rounds of operations by several workers on one mount.
pub async fn rounds(w: &Arc<World>, mount: &Mount, workers: u64, rounds: u64) -> Result {
    let mut tasks = JoinSet::new();
    for worker in 0..workers {
        let (w, mount) = (Arc::clone(w), mount.clone());
        let mut rng = SmallRng::seed_from_u64(w.seed ^ worker << 32);
        tasks.spawn(async move {
            for round in 0..rounds {
                one_round(&w, &mount, &format!("w{worker}-r{round}-{}", mount.transport().len()), &mut rng)
                    .await?;
            }
            Ok(())
        });
    }
    join(&mut tasks).await
}

async fn one_round(w: &World, mount: &Mount, name: &str, rng: &mut SmallRng) -> Result {
    let root = mount.root();
    let file = create(w, mount, name).await?;
    let sizes = [1, 100, 900, 1500, 4000, 5000, 20_000, 70_000];
    let len = sizes[rng.random_range(0..sizes.len())];
    let data = pattern(rng.random(), len);
    let cut = rng.random_range(0..len);
    if cut > 0 {
        write(w, mount, file, 0, &data[..cut]).await?;
    }
    write(w, mount, file, cut as u64, &data[cut..]).await?;
    read(w, mount, file, 0, &data).await?;
    let attributes = w.operation(mount.getattr(file)).await.map_err(|e| failed("GETATTR", e))?;
    if attributes.size != len as u64 {
        return Err(format!("a file of {len} bytes has {}", attributes.size));
    }
    if rng.random() {
        // With a guard a second execution would fail.
        let new = SetAttributes { mode: Some(0o600), ..SetAttributes::default() };
        let done = w.once(Proc::SetAttr, mount.setattr(file, new, Some(attributes.ctime))).await;
        done.map_err(|e| failed("SETATTR", e))?;
    }
    if rng.random() {
        shapes_once(w, mount, rng.random_range(0..u64::MAX)).await?;
    }
    if rng.random() {
        let dir = format!("{name}-dir");
        let made = w.once(Proc::MkDir, mount.mkdir(root, dir.as_bytes(), SetAttributes::default())).await;
        made.map_err(|e| failed("MKDIR", e))?;
        let other = format!("{name}-link");
        w.once(Proc::Link, mount.link(file, root, other.as_bytes())).await.map_err(|e| failed("LINK", e))?;
        w.once(Proc::Remove, mount.remove(root, other.as_bytes()))
            .await
            .map_err(|e| failed("REMOVE of a link", e))?;
        w.once(Proc::RmDir, mount.rmdir(root, dir.as_bytes())).await.map_err(|e| failed("RMDIR", e))?;
    }
    let moved = format!("{name}-moved");
    let done = w.once(Proc::Rename, mount.rename((root, name.as_bytes()), (root, moved.as_bytes()))).await;
    done.map_err(|e| failed("RENAME", e))?;
    w.once(Proc::Remove, mount.remove(root, moved.as_bytes())).await.map_err(|e| failed("REMOVE", e))?;
    Ok(())
}

/// A client that sends messages that make no sense, but never more than it has credits for: its Calls in between are
/// answered, unless something breaks its connection.
async fn nonsense(w: &World, mut rng: SmallRng) -> Result {
    let node = client(66);
    w.log.checker(|c| c.odd(node));
    for _ in 0..3 {
        let done = nonsense_once(w, node, &mut rng).await;
        match done {
            Err(why) if !w.log.checker(|c| c.struck(node)) => {
                return Err(format!("a Call between nonsense: {why}"));
            }
            _ => {}
        }
    }
    Ok(())
}

async fn nonsense_once(w: &World, node: IpAddr, rng: &mut SmallRng) -> Result {
    let mut raw = Raw::connect(&w.sim, node, SERVER, 8).await?;
    let header = |body| Header::new(Xid(0), Credits(1), body);
    for xid in 0..20 {
        raw.send(&odd::null(xid, 1, ChunkLists::default()), None);
        raw.reply().await?;
        match rng.random_range(0..3) {
            0 => raw.send(b"too short", None),
            1 => raw.send(&odd::message(&header(Body::Error(RdmaError::Chunk)), &[]), None),
            _ => {
                let mut retired = odd::null(xid, 1, ChunkLists::default());
                retired[15] = 3;
                raw.send(&retired, None);
            }
        }
    }
    Ok(())
}

/// Waits for all tasks; the first failure is the result.
pub async fn join(tasks: &mut JoinSet<Result>) -> Result {
    while let Some(done) = tasks.join_next().await {
        done.map_err(|e| format!("a worker died: {e}"))??;
    }
    Ok(())
}
