//! Two servers over one directory: when one dies in the middle of a copy, the other one goes on with it.

use std::{fs, path::Path, process::Stdio};

use crate::support::{Serving, fails, noise, ok, program};

const LARGE: usize = 160 << 20;

/// Starts a copy, kills a server when so much of the part has arrived, and waits for the copy, which has to succeed.
fn copy_while_it_dies(victim: &mut Serving, args: &[&str], part: &Path, whole: &Path) {
    for _ in 0..20 {
        // Gone with a copy that was faster than its killer.
        let _ = fs::remove_file(whole);
        let mut child = program().args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            if fs::metadata(part).is_ok_and(|m| m.len() >= 40 << 20) {
                victim.kill();
                let under_way = part.exists();
                let ended = child.wait_with_output().unwrap();
                assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
                assert!(under_way, "the copy had ended already");
                return;
            }
            std::thread::yield_now();
        }
        assert!(child.wait().unwrap().success());
    }
    panic!("the copy was always faster than its killer");
}

#[test]
fn the_other_server_goes_on_with_a_copy() {
    let mut first = Serving::unsquashed();
    let second = first.beside();
    let data = noise(LARGE, 7);
    fs::write(first.dir.join("big"), &data).unwrap();
    let out = first.outside("out");
    fs::create_dir(&out).unwrap();
    let down = out.join("big");

    let both = first.url_or(&second, "big");
    let args = ["cp", &both, down.to_str().unwrap()];
    copy_while_it_dies(&mut first, &args, &out.join(".big.rpcrdma-part"), &down);
    assert!(fs::read(&down).unwrap() == data);

    // The first one is dead; commands that begin now find the second one at once.
    assert!(ok(["ls", &both]).contains("big"));

    // What the one that dies has written without a promise is written again.
    first.restart();
    let up = first.dir.join("up");
    let both = first.url_or(&second, "up");
    let args = ["cp", down.to_str().unwrap(), &both];
    let part = first.dir.join(".up.rpcrdma-part");
    copy_while_it_dies(&mut first, &args, &part, &up);
    assert!(fs::read(&up).unwrap() == data);
}

#[test]
fn when_no_server_is_there_each_one_is_named() {
    let mut first = Serving::unsquashed();
    let mut second = first.beside();
    let both = first.url_or(&second, "");
    first.kill();
    second.kill();
    let said = fails(1, ["ls", &both]);
    assert!(said.contains(&first.rdma) && said.contains(&second.rdma), "{said}");
}
