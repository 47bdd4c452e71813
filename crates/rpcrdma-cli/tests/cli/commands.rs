//! `ls`, `cat`, `stat`, `df`, `mkdir`, `rm` and `ping`.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::symlink,
    process::Stdio,
};

use crate::support::{Serving, age, fails, noise, ok, program, run};

fn planted() -> Serving {
    let server = Serving::unsquashed();
    let dir = &server.dir;
    fs::create_dir_all(dir.join("sub/below")).unwrap();
    fs::write(dir.join("file"), "hello, world\n").unwrap();
    fs::write(dir.join(".dot"), "").unwrap();
    fs::write(dir.join("sub/two words"), "2").unwrap();
    symlink("file", dir.join("link")).unwrap();
    for (i, name) in ["file", "sub/two words", "link", "sub/below", "sub"].iter().enumerate() {
        age(&dir.join(name), i as i64);
    }
    server
}

#[test]
fn ls_lists_names_in_order() {
    let server = planted();
    assert_eq!(ok(["ls", &server.url("")]), "file\nlink\nsub\n");
    assert_eq!(ok(["ls", "-a", &server.url("")]), ".dot\nfile\nlink\nsub\n");
    assert_eq!(ok(["ls", &server.url("sub/two%20words")]), "two words\n");
    assert_eq!(ok(["ls", "--tcp", &server.tcp_url("sub")]), "below\ntwo words\n");
    let said = ok(["ls", "-R", &server.url("")]);
    let top = server.dir.display();
    assert_eq!(
        said,
        format!("{top}:\nfile\nlink\nsub\n\n{top}/sub:\nbelow\ntwo words\n\n{top}/sub/below:\n")
    );
}

#[test]
fn ls_has_long_lines() {
    let server = planted();
    let said = ok(["ls", "-l", &server.url("")]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("-rw"), "{said}");
    assert!(lines[0].ends_with(" 13 2020-09-13 12:26 file"), "{said}");
    assert!(lines[1].starts_with("lrwxrwxrwx 1 ") && lines[1].ends_with("link -> file"), "{said}");
    assert!(lines[2].starts_with("drwx"), "{said}");
    assert!(!said.contains('\x1b'), "no colours into a pipe");
}

#[test]
fn ls_lists_a_directory_of_thousands() {
    let server = Serving::unsquashed();
    let names: Vec<String> = (0..5000).map(|i| format!("{i:05}-{}", "x".repeat(i % 50))).collect();
    for name in &names {
        fs::write(server.dir.join(name), "").unwrap();
    }
    assert_eq!(ok(["ls", &server.url("")]).lines().collect::<Vec<_>>(), names);
}

#[test]
fn cat_prints_files_and_parts_of_them() {
    let server = planted();
    assert_eq!(ok(["cat", &server.url("file"), &server.url("sub/two%20words")]), "hello, world\n2");
    assert_eq!(ok(["cat", "--offset", "7", "--length", "5", &server.url("file")]), "world");
    assert_eq!(ok(["cat", "--offset", "1G", &server.url("file")]), "");
    let data = noise((9 << 20) + 5, 8);
    fs::write(server.dir.join("big"), &data).unwrap();
    let cat = |args: &[&str]| program().arg("cat").args(args).arg(server.url("big")).output().unwrap().stdout;
    assert!(cat(&[]) == data);
    assert!(cat(&["--offset", "1048575", "--length", "3M"]) == data[1_048_575..][..3 << 20]);
    assert!(cat(&["--inline", "64K", "--length", "30000"]) == data[..30_000]);
}

#[test]
fn errors_are_one_sentence_each_and_the_rest_goes_on() {
    let server = planted();
    let ended = run(["cat", &server.url("none"), &server.url("file"), &server.url("sub")]);
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.stdout, "hello, world\n");
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{ended:?}");
    assert_eq!(
        lines[0],
        format!("rpcrdma: cat: {}: No such file or directory (server: NFS3ERR_NOENT)", server.url("none"))
    );
    assert!(lines[1].ends_with("sub: Is a directory"), "{ended:?}");
    let said = fails(1, ["ls", &server.url("file/below")]);
    assert!(said.contains("Not a directory (server: "), "{said}");
    let said = fails(1, ["ls", &format!("nfs://{}/other/export", server.rdma)]);
    assert!(said.contains("Permission denied (server: "), "{said}");
}

#[test]
fn stat_tells_everything() {
    let server = planted();
    let said = ok(["stat", &server.url("file")]);
    for line in
        ["Type: regular file", "Size: 13 bytes", "Links: 1", "Changed: 2020-09-13 12:26:40.123456789 +0000"]
    {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(ok(["stat", &server.url("link")]).contains("link -> file"));
    let said = ok(["stat", "--json", &server.url("file"), &server.url("sub")]);
    let lines: Vec<serde_json::Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines[0]["type"], "regular file");
    assert_eq!(lines[0]["size"], 13);
    assert_eq!(lines[0]["mtime"], "2020-09-13T12:26:40.123456789+00:00");
    assert_eq!(lines[1]["type"], "directory");
}

#[test]
fn df_tells_how_full() {
    let server = planted();
    let said = ok(["df", &server.url(""), &server.url("file")]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines[0].contains("Size") && lines[1].contains('%') && lines[1].ends_with(&server.url("")));
    let said = ok(["df", "--json", &server.url("")]);
    let record: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(record["total_bytes"].as_u64().unwrap() > 0);
    assert!(record["available_bytes"].as_u64() <= record["total_bytes"].as_u64());
    ok(["df", "-i", &server.url("")]);
}

#[test]
fn mkdir_makes_one_or_all() {
    let server = planted();
    ok(["mkdir", "-m", "700", &server.url("new")]);
    assert!(server.dir.join("new").is_dir());
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(server.dir.join("new")).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o700);
    let said = fails(1, ["mkdir", &server.url("new")]);
    assert!(said.contains("File exists (server: NFS3ERR_EXIST)"), "{said}");
    let said = fails(1, ["mkdir", &server.url("a/b/c")]);
    assert!(said.contains("No such file or directory"), "{said}");
    ok(["mkdir", "-p", &server.url("a/b/c")]);
    ok(["mkdir", "-p", &server.url("a/b/c")]);
    assert!(server.dir.join("a/b/c").is_dir());
    let said = fails(1, ["mkdir", "-p", &server.url("file/x")]);
    assert!(said.contains("not a directory") || said.contains("Not a directory"), "{said}");
    fails(2, ["mkdir", "-m", "999", &server.url("x")]);
}

#[test]
fn rm_removes_files_and_trees() {
    let server = planted();
    let said = fails(1, ["rm", &server.url("sub")]);
    assert!(said.contains("Is a directory"), "{said}");
    ok(["rm", &server.url("link")]);
    assert!(server.dir.join("file").exists());
    for i in 0..700 {
        fs::write(server.dir.join(format!("sub/below/{i}")), "").unwrap();
    }
    ok(["rm", "-r", &server.url("sub"), &server.url("file")]);
    assert!(!server.dir.join("sub").exists() && !server.dir.join("file").exists());
    let said = fails(1, ["rm", &server.url("sub")]);
    assert!(said.contains("NFS3ERR_NOENT"), "{said}");
    ok(["rm", "-f", &server.url("sub")]);
    let said = fails(1, ["rm", "-r", &server.url("")]);
    assert!(said.contains("export as a whole"), "{said}");
    assert!(server.dir.join(".dot").exists());
}

#[test]
fn ping_counts_and_measures() {
    let server = planted();
    let said = ok(["ping", "-c", "300", "-i", "0", "-d", "8", &format!("nfs://{}", server.rdma)]);
    assert!(said.contains("iWARP/TCP, CRC32c"), "{said}");
    assert!(said.contains("300 round trips in ") && said.contains("p50 ") && said.contains("p99 "), "{said}");
    let said = ok(["ping", "-c", "50", "-i", "0", "--json", "--crc", "off", &server.url("")]);
    let record: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(record["count"], 50);
    assert_eq!(record["failures"], 0);
    assert!(record["p50_ns"].as_u64() <= record["p99_ns"].as_u64());
    let said = ok(["ping", "-c", "3", "-i", "0", "--peer-to-peer", "--nconnect", "2", &server.url("")]);
    assert!(said.contains("iWARP/TCP, CRC32c, peer-to-peer"), "{said}");
    let said = ok(["ping", "-c", "3", "-i", "0.01", "--tcp", &server.tcp_url("")]);
    let each: Vec<&str> = said.lines().filter_map(|l| l.strip_prefix("     ")).collect();
    assert!(each.len() == 3 && each[2].starts_with("3  "), "{said}");
}

#[test]
fn an_interrupt_ends_ping_though_the_server_is_silent() {
    let server = planted();
    let url = format!("nfs://{}", server.rdma);
    let mut ping = program()
        .args(["ping", "-c", "0", "-i", "0.01", "--timeout", "30", &url])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(ping.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().trim_start().starts_with("1 ")).unwrap().unwrap();
    server.freeze();
    rustix::process::kill_process(rustix::process::Pid::from_child(&ping), rustix::process::Signal::INT)
        .unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(ping.wait().unwrap().code(), Some(0));
    assert!(rest.iter().any(|line| line.starts_with("p50 ")), "{rest:?}");
    server.thaw();
}

#[test]
fn a_server_that_is_not_there_is_said_to_be() {
    let server = Serving::unsquashed();
    let url = server.url("");
    assert_eq!(server.stop().code, Some(0));
    let said = fails(1, ["ls", &url]);
    assert!(said.contains("cannot connect") && said.contains("refused"), "{said}");
    let said = fails(1, ["ls", "nfs://host.invalid/x"]);
    assert!(said.contains("no such host"), "{said}");
}

#[test]
fn options_that_would_do_nothing_are_refused() {
    for option in [["--crc", "off"], ["--inline", "64K"], ["--inject", "disconnect=1/9"]] {
        let said = fails(2, ["ls", "--tcp", option[0], option[1], "nfs://127.0.0.1/x"]);
        assert!(said.contains("cannot be used with"), "{said}");
    }
    let said = fails(2, ["ls", "--tcp", "--peer-to-peer", "nfs://127.0.0.1/x"]);
    assert!(said.contains("cannot be used with"), "{said}");
}

#[test]
fn a_silent_server_is_given_up_in_time() {
    let server = planted();
    server.freeze();
    for tcp in [false, true] {
        let url = if tcp { server.tcp_url("") } else { server.url("") };
        let options: &[&str] = if tcp { &["--tcp"] } else { &[] };
        let said = fails(1, ["ls", "--timeout", "1", &url].iter().chain(options));
        assert!(
            said.contains("in time") || said.contains("within 1 s") || said.contains("timed out"),
            "{said}"
        );
    }
    server.thaw();
    ok(["ls", &server.url("")]);
}

#[test]
fn a_url_without_a_path_lists_what_is_exported() {
    let server = Serving::unsquashed();
    let export = server.dir.to_str().unwrap().to_owned();
    let path_of =
        |url: String| url.split_once("//").map(|(_, rest)| rest[..rest.find('/').unwrap()].to_owned());
    for (tcp, url) in [(None, server.url("")), (Some("--tcp"), server.tcp_url(""))] {
        let bare = format!("nfs://{}", path_of(url).unwrap());
        let args: Vec<&str> = ["ls"].into_iter().chain(tcp).chain([bare.as_str()]).collect();
        assert_eq!(ok(args).lines().collect::<Vec<_>>(), [&export]);
        let args: Vec<&str> = ["stat"].into_iter().chain(tcp).chain([bare.as_str()]).collect();
        assert!(fails(1, args).contains("rpcrdma ls"));
    }
}

#[test]
fn a_port_for_rdma_that_is_taken_for_one_of_tcp_is_told() {
    let server = Serving::unsquashed();
    let done = run(["ls", "--tcp", "--timeout", "4", &server.url("")]);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stderr.contains("leave --tcp out"), "{done:?}");
    let done = run(["ls", &server.tcp_url("")]);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stderr.contains("use --tcp"), "{done:?}");
}

#[test]
fn probe_finds_nothing_wrong_with_our_server() {
    let server = planted();
    let said = ok(["probe", "--json", "--write", "--timeout", "30", &server.url("")]);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["counts"]["deviates"], 0, "{said}");
    let findings = report["findings"].as_array().unwrap();
    for finding in findings {
        let hostile = finding["group"] == "hostile";
        assert_eq!(finding["verdict"] == "skipped", hostile, "{finding}");
        assert!(finding["section"].as_str().unwrap().starts_with("RFC "), "{finding}");
    }
    let list = ok(["probe", "--list"]);
    assert_eq!(list.lines().count(), findings.len());
    let left = fs::read_dir(&server.dir).unwrap().filter(|e| {
        let name = e.as_ref().unwrap().file_name();
        name.to_string_lossy().contains("probe")
    });
    assert_eq!(left.count(), 0, "it takes its file away");
}

#[test]
fn probe_prints_a_table() {
    let server = planted();
    let said = ok(["probe", "--only", "version-2,read-to-chunk", &server.url("")]);
    assert!(said.contains("headers\n") && said.contains("conforms   RFC 8166 4.5.1"), "{said}");
    assert!(said.contains("ERR_VERS, versions 1 to 1; the connection goes on"), "{said}");
    // The files there are shorter.
    assert!(said.contains("skipped") && said.contains("1024 are needed"), "{said}");
    assert!(!said.contains('\x1b'), "no colours into a pipe");
    assert!(fails(2, ["probe", "--write", "nfs://127.0.0.1"]).contains("needs a URL with a path"));
    assert!(fails(2, ["probe", "--only", "nonsense", "nfs://127.0.0.1"]).contains("--list"));
}
