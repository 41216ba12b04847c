//! Files to, from and between VPSes: `vps cp` and the HTTP API, on real Docker.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, Site, run, run_with_input};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::websocket::{close_code, open, read_json, say};

fn create(site: &Site, name: &str) -> String {
    let task = site.json(&["vps", "create", "--name", name, "--ssh", "--image", BUSYBOX]);
    format!("kohakuriver-vps-{}", task["task_id"].as_str().unwrap())
}

fn inside(site: &Site, command: &str) -> String {
    site.kr(&["ssh", "web", "--", command]).ok()
}

/// Kind, mode, seconds and nanoseconds, content or target.
type Look = (char, u32, (i64, i64), Vec<u8>);

/// Everything in a tree by its way.
fn seen(root: &Path) -> BTreeMap<PathBuf, Look> {
    fn add(root: &Path, way: &Path, all: &mut BTreeMap<PathBuf, Look>) {
        for entry in fs::read_dir(root.join(way)).unwrap() {
            let way = way.join(entry.unwrap().file_name());
            let (path, meta) = (root.join(&way), root.join(&way).symlink_metadata().unwrap());
            let (kind, content) = if meta.is_dir() {
                add(root, &way, all);
                ('d', Vec::new())
            } else if meta.is_symlink() {
                ('l', fs::read_link(&path).unwrap().into_os_string().into_vec())
            } else {
                ('f', fs::read(&path).unwrap())
            };
            let time = if kind == 'f' { (meta.mtime(), meta.mtime_nsec()) } else { (0, 0) };
            all.insert(way, (kind, meta.mode(), time, content));
        }
    }
    let mut all = BTreeMap::new();
    add(root, Path::new(""), &mut all);
    all
}

/// Bytes that no mistake in order or length leaves equal.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(length);
    bytes
}

#[test]
fn a_tree_comes_back_as_it_went_and_the_second_time_nothing_moves() {
    let mut site = Site::new();
    let _server = site.up();
    create(&site, "web");
    create(&site, "other");
    let tree = site.path().join("tree");
    fs::create_dir_all(tree.join("deep/er/empty")).unwrap();
    let odd = OsString::from_vec(b" spaces, a\nnewline and \xff\xfe no text ".to_vec());
    fs::create_dir(tree.join(&odd)).unwrap();
    fs::write(tree.join(&odd).join(&odd), noise(3_000_000)).unwrap();
    fs::write(tree.join("deep/er/empty file"), "").unwrap();
    for number in 0..300 {
        fs::write(tree.join(format!("deep/{number}")), number.to_string()).unwrap();
    }
    fs::write(tree.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("script"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(tree.join("deep/er"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("deep/er", tree.join("to directory")).unwrap();
    symlink("/nowhere/at all", tree.join("dangling")).unwrap();
    let local = tree.to_str().unwrap();

    let first = site.json(&["vps", "cp", local, "web:"]);
    let counts = |summary: &Value| {
        ["files", "directories", "symlinks", "skipped"].map(|key| summary[key].as_u64().unwrap())
    };
    assert_eq!(counts(&first), [303, 5, 2, 0], "{first}");
    let again = site.json(&["vps", "cp", local, "web:"]);
    assert_eq!((counts(&again), &again["bytes"]), ([0, 5, 2, 303], &json!(0)), "{again}");
    fs::write(tree.join("script"), "#!/bin/sh\nexit 1\n").unwrap();
    let changed = site.kr(&["vps", "cp", local, "web:"]);
    assert!(changed.stderr.contains("1 file copied"), "{changed:?}");
    assert!(changed.stderr.contains("302 files were already present"), "{changed:?}");
    let anew = site.json(&["vps", "cp", "--no-resume", local, "web:"]);
    assert_eq!(counts(&anew), [303, 5, 2, 0], "{anew}");

    // Over another VPS and back; what is in it, not itself.
    site.kr(&["vps", "cp", "web:tree", "other:/no/copy"]).fails(1, &["/no", "hint:"]);
    site.kr(&["vps", "cp", "web:tree", "other:/copy"]).ok();
    fs::create_dir(site.path().join("back")).unwrap();
    let back = site.path().join("back");
    site.kr(&["vps", "cp", "other:/copy/.", back.to_str().unwrap()]).ok();
    assert!(seen(&back) == seen(&tree), "the tree came back changed");

    // One file, also by standard input and output.
    let name = site.path().join("one");
    site.kr(&["vps", "cp", "web:/root/tree/script", name.to_str().unwrap()]).ok();
    assert_eq!(fs::read(&name).unwrap(), fs::read(tree.join("script")).unwrap());
    let bytes = b"binary \0 \xc3\xa9";
    run_with_input(site.command().args(["vps", "cp", "-", "web:/tmp/in"]), bytes).ok();
    assert_eq!(site.kr(&["vps", "cp", "web:/tmp/in", "-"]).ok().as_bytes(), bytes);

    site.kr(&["vps", "cp", "web:/root/nope/x", "."]).fails(1, &["/root/nope/x", "only /root does"]);
    site.kr(&["vps", "cp", local, "web:/no/such/place"]).fails(1, &["/no/such", "hint:"]);
    site.kr(&["vps", "cp", local, "web:/tmp/in"]).fails(1, &["is a file"]);
    site.kr(&["vps", "cp", local, "nobody:"]).fails(1, &["nobody", "vps list"]);
    site.kr(&["vps", "cp", "a", "b"]).fails(2, &["neither SOURCE", "VPS:PATH"]);
    site.kr(&["vps", "cp", "web:/root", "web:/root/tree/x"]).fails(2, &["into"]);
    let pipe = site.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    site.kr(&["vps", "cp", pipe.to_str().unwrap(), "web:"]).fails(1, &["pipe", "not copied"]);
}

/// Starts a copy and stops the clock for it somewhere in the middle, as `held` finds it.
fn hold_in_the_middle(site: &Site, arguments: &[&str], held: impl Fn() -> bool) -> Child {
    let mut command = site.command();
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    for _ in 0..500 {
        kill(pid, Signal::SIGSTOP).unwrap();
        if held() {
            return child;
        }
        kill(pid, Signal::SIGCONT).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    panic!("never caught in the middle");
}

#[test]
fn left_out_pipe_leaves_no_mark_for_later_copies() {
    let mut site = Site::new();
    let _server = site.up();
    create(&site, "web");
    let (tree, other) = (site.path().join("tree"), site.path().join("other"));
    for (folder, file) in [(&tree, "file"), (&other, "file")] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join(file), folder.display().to_string()).unwrap();
    }
    nix::unistd::mkfifo(&tree.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let copy = |from: &Path, to: &str| site.kr(&["vps", "cp", from.to_str().unwrap(), to]);
    copy(&tree, "web:/root/copy").fails(1, &["pipe", "skipped", "1 item was not copied"]);
    copy(&other, "web:/root/copy").ok();
    let found = inside(&site, "cd /root/copy && find . -type f | sort && cat file other/file");
    let expected = format!("./file\n./other/file\n{}{}", tree.display(), other.display());
    assert_eq!(found, expected);

    // The mark of an attempt that never ended, by a version that did not name the source.
    inside(&site, "mkdir /root/half && touch /root/half/.kr-part");
    copy(&other, "web:/root/half").ok();
    assert_eq!(
        inside(&site, "cd /root/half && find . -type f | sort"),
        "./.kr-part\n./other/file\n"
    );

    // The same in the other direction.
    inside(&site, "cd /root/copy && mkfifo other/pipe");
    let back = site.path().join("back");
    site.kr(&["vps", "cp", "web:/root/copy", back.to_str().unwrap()]).fails(1, &["skipped"]);
    assert!(back.join("other/file").exists() && !back.join(".kr-part").exists());
}

#[test]
fn a_copy_that_was_killed_goes_on_where_it_stopped_in_both_directions() {
    const LENGTH: usize = 150_000_000;
    let mut site = Site::new();
    let _server = site.up();
    create(&site, "web");
    let (here, back) = (site.path().join("big"), site.path().join("back"));
    fs::write(&here, noise(LENGTH)).unwrap();
    let is_part = |size: u64| size > 0 && size < LENGTH as u64;
    let up = ["vps", "cp", here.to_str().unwrap(), "web:/root/big"];
    let there = "/api/fs/web/stat?path=/root/.big.kr-part";
    let mut child = hold_in_the_middle(&site, &up, || {
        is_part(http(&site, "GET", there, &[], b"").json()["size"].as_u64().unwrap_or(0))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(http(&site, "GET", "/api/fs/web/stat?path=/root/big", &[], b"").status, 404);
    let summary = site.json(&up);
    assert_eq!((&summary["resumed"], &summary["files"]), (&json!(1), &json!(1)), "{summary}");
    assert!(summary["bytes"].as_u64().unwrap() < LENGTH as u64, "{summary}");

    let down = ["vps", "cp", "web:/root/big", back.to_str().unwrap()];
    let part = site.path().join(".back.kr-part");
    let mut child = hold_in_the_middle(&site, &down, || {
        is_part(fs::metadata(&part).map_or(0, |meta| meta.len()))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!back.exists());
    let summary = site.json(&down);
    assert_eq!(summary["resumed"], json!(1), "{summary}");
    assert!(fs::read(&back).unwrap() == fs::read(&here).unwrap(), "it was put together wrongly");
    assert!(!part.exists());

    // A VPS that ends in the middle.
    let mut child = hold_in_the_middle(&site, &[&up[..], &["--no-resume"]].concat(), || {
        is_part(http(&site, "GET", there, &[], b"").json()["size"].as_u64().unwrap_or(0))
    });
    site.kr(&["vps", "kill", "web"]).ok();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    kill(pid, Signal::SIGCONT).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("connection to VPS web was lost") && said.contains("hint:"), "{said}");
    site.kr(&up).fails(1, &["killed", "restart"]);
}

#[test]
fn a_reader_sees_the_old_content_or_the_new_and_a_full_disk_keeps_nothing_half() {
    let mut site = Site::new();
    let _server = site.up();
    let container = create(&site, "web");
    let (one, two) = (site.path().join("one"), site.path().join("two"));
    fs::write(&one, noise(2_000_000)).unwrap();
    fs::write(&two, vec![7; 3_000_000]).unwrap();
    let copy = |from: &Path| site.kr(&["vps", "cp", from.to_str().unwrap(), "web:/root/x"]).ok();
    copy(&one);
    inside(&site, "md5sum /root/x >/tmp/known");
    copy(&two);
    inside(&site, "md5sum /root/x >>/tmp/known");
    inside(
        &site,
        "(while [ ! -e /tmp/stop ]; do md5sum /root/x; done >/tmp/sums 2>&1; touch /tmp/done) >/dev/null 2>&1 &",
    );
    for _ in 0..15 {
        copy(&one);
        copy(&two);
    }
    inside(&site, "touch /tmp/stop; while [ ! -e /tmp/done ]; do sleep 0.1; done");
    assert_eq!(inside(&site, "sort -u /tmp/sums"), inside(&site, "sort -u /tmp/known"));

    inside(&site, "mkdir /small");
    let format = ["inspect", "--format", "{{.State.Pid}}", &container];
    let pid = run(Command::new("docker").args(format)).ok();
    let mount = ["--mount", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/small"];
    run(Command::new("nsenter").args(["--target", pid.trim()]).args(mount)).ok();
    let full = ["vps", "cp", one.to_str().unwrap(), "web:/small/"];
    site.kr(&full).fails(1, &["disk is full", "/small/one", "hint:"]);
    let answer = http(&site, "PUT", "/api/fs/web/raw?path=/small/y", &[], &noise(2_000_000));
    assert_eq!((answer.status, answer.json()["code"].as_str()), (507, Some("disk_full")));
    assert_eq!(inside(&site, "ls -A /small"), "", "nothing half is left");
    run_with_input(site.command().args(["vps", "cp", "-", "web:/small/z"]), b"fits").ok();
    assert_eq!(inside(&site, "cat /small/z"), "fits");
}

#[test]
fn no_way_leads_to_proc_sys_or_dev() {
    let mut site = Site::new();
    let _server = site.up();
    create(&site, "web");
    inside(&site, "ln -s /proc /p; ln -s / /r; ln -s /proc/self/root /m; ln -s /dev/null /n");
    let ways = [
        "/proc/1/environ",
        "/p/1/environ",
        "/r/proc/1/environ",
        "/m/etc/passwd",
        "/n",
        "/../../proc/1/environ",
        "/proc/self/root/etc/passwd",
        "/r/r/../dev/null",
    ];
    for way in ways {
        let refused = http(&site, "GET", &format!("/api/fs/web/raw?path={way}"), &[], b"");
        assert_eq!(refused.status, 400, "{way}: {refused:?}");
        site.kr(&["vps", "cp", &format!("web:{way}"), "-"]).fails(1, &["VPS web"]);
        let put = http(&site, "PUT", &format!("/api/fs/web/raw?path={way}"), &[], b"x");
        assert_eq!(put.status, 400, "{way}: {put:?}");
    }
    let passwd = http(&site, "GET", "/api/fs/web/raw?path=/../../etc/passwd", &[], b"");
    assert!(passwd.status == 200 && passwd.body.starts_with(b"root:"), "its own root");
}

#[test]
fn the_api_has_the_fields_that_existing_clients_know() {
    let mut site = Site::new();
    let _server = site.up();
    let id = create(&site, "web").replace("kohakuriver-vps-", "");
    let post = |what: &str, body: Value| {
        http(&site, "POST", &format!("/api/fs/{id}/{what}"), &[], body.to_string().as_bytes())
    };
    let get = |what: &str| http(&site, "GET", &format!("/api/fs/{id}/{what}"), &[], b"");

    let written = post("write", json!({"path": "/srv/a/b.txt", "content": "gr\u{fc}n\n"}));
    assert_eq!(written.json(), json!({"path": "/srv/a/b.txt", "size": 6, "success": true}));
    let body = json!({"path": "/srv/raw.bin", "content": "AP/+", "encoding": "base64"});
    assert_eq!(post("write", body).json()["size"], 3);
    let body = json!({"path": "/srv/raw.bin", "content": "!", "encoding": "base64"});
    assert_eq!(post("write", body).status, 400);
    let body = json!({"path": "/no/x", "content": "", "create_parents": false});
    assert_eq!(post("write", body).status, 404);
    let read = get("read?path=/srv/a/b.txt").json();
    let expected = json!({"path": "/srv/a/b.txt", "content": "gr\u{fc}n\n", "encoding": "utf-8",
        "size": 6, "truncated": false});
    assert_eq!(read, expected);
    let read = get("read?path=/srv/raw.bin&encoding=base64&limit=2").json();
    assert_eq!(
        (&read["content"], &read["truncated"], &read["size"]),
        (&json!("AP8="), &json!(true), &json!(3))
    );
    assert_eq!((get("read?path=/srv").status, get("read?path=/none").status), (400, 404));

    let list = get("list?path=/srv/").json();
    assert_eq!((&list["path"], &list["parent"]), (&json!("/srv"), &json!("/")));
    let entries = list["entries"].as_array().unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "raw.bin"]);
    assert_eq!((&entries[0]["type"], &entries[0]["size"]), (&json!("directory"), &json!(-1)));
    assert_eq!(entries[1]["path"], "/srv/raw.bin");
    assert_eq!(entries[1]["permissions"], "rw-r--r--");
    assert_eq!(get("list").json()["parent"], Value::Null);
    assert_eq!((get("list?path=/srv/raw.bin").status, get("list?path=x").status), (400, 400));
    let stat = get("stat?path=/srv/raw.bin").json();
    for (key, value) in [
        ("type", json!("file")),
        ("size", json!(3)),
        ("owner", json!("root")),
        ("is_readable", json!(true)),
        ("is_writable", json!(true)),
        ("is_binary", json!(true)),
    ] {
        assert_eq!(stat[key], value, "{key}: {stat}");
    }

    let mkdir =
        |path: &str, parents: bool| post("mkdir", json!({"path": path, "parents": parents}));
    assert_eq!(mkdir("/srv/new/er", true).json()["path"], "/srv/new/er");
    assert_eq!((mkdir("/srv/new/er", true).status, mkdir("/srv/new/er", false).status), (200, 409));
    let rename = |from: &str, to: &str, overwrite: bool| {
        post("rename", json!({"source": from, "destination": to, "overwrite": overwrite}))
    };
    assert_eq!(rename("/srv/none", "/srv/x", false).status, 404);
    assert_eq!(rename("/srv/raw.bin", "/srv/a/b.txt", false).status, 409);
    let renamed = rename("/srv/raw.bin", "/srv/a/b.txt", true).json();
    assert_eq!(
        (&renamed["source"], &renamed["destination"]),
        (&json!("/srv/raw.bin"), &json!("/srv/a/b.txt"))
    );
    let delete = |query: &str| {
        http(&site, "DELETE", &format!("/api/fs/{id}/delete?path={query}"), &[], b"").status
    };
    assert_eq!(
        (delete("/srv/a"), delete("/srv/a&recursive=true"), delete("/srv/a")),
        (400, 200, 200)
    );

    // Of any length: more than every limit above.
    let large = noise(70_000_000);
    let put = http(&site, "PUT", "/api/fs/web/raw?path=/srv/large&mode=640", &[], &large);
    assert_eq!(put.json()["size"], 70_000_000);
    assert_eq!(get("stat?path=/srv/large").json()["permissions"], "rw-r-----");
    let whole = get("raw?path=/srv/large");
    assert!(whole.status == 200 && whole.body == large);
    let range =
        |text: &str| http(&site, "GET", "/api/fs/web/raw?path=/srv/large", &[("Range", text)], b"");
    let part = range("bytes=69999990-");
    assert_eq!((part.status, part.body.as_slice()), (206, &large[69_999_990..]));
    assert_eq!(part.header("content-range"), Some("bytes 69999990-69999999/70000000"));
    assert_eq!(range("bytes=70000000-").status, 416);
}

#[test]
fn news_of_changes_come_by_websocket_as_existing_clients_know_them() {
    let mut site = Site::new();
    let _server = site.up();
    let id = create(&site, "web").replace("kohakuriver-vps-", "");
    inside(&site, "mkdir -p /watched/deep");
    let mut socket = open(&site, &format!("/ws/fs/{id}/watch?paths=/watched,/nope"));
    let expected = json!({"type": "watching", "paths": ["/watched"], "method": "inotify"});
    assert_eq!(read_json(&mut socket), expected);
    run_with_input(site.command().args(["vps", "cp", "-", "web:/watched/deep/x"]), b"1").ok();
    let mut seen = Vec::new();
    while seen.last() != Some(&("MOVE".to_owned(), "/watched/deep/x".to_owned())) {
        let news = read_json(&mut socket);
        assert_eq!((&news["type"], &news["is_dir"]), (&json!("change"), &json!(false)), "{news}");
        let text = |key: &str| news[key].as_str().unwrap().to_owned();
        seen.push((text("event"), text("path")));
    }
    assert_eq!(seen[0].0, "CREATE");
    inside(&site, "rm /watched/deep/x");
    let gone = read_json(&mut socket);
    assert_eq!((&gone["event"], &gone["path"]), (&json!("DELETE"), &json!("/watched/deep/x")));
    say(&mut socket, &json!({"type": "ping"}));
    assert_eq!(read_json(&mut socket), json!({"type": "pong"}));
    let mut refused = open(&site, "/ws/fs/web/watch?paths=/proc");
    let news = read_json(&mut refused);
    assert!(news["type"] == "error" && news["message"].to_string().contains("/proc"), "{news}");
    assert_eq!(close_code(&mut refused), Some(1000));
    site.kr(&["vps", "kill", "web"]).ok();
    assert_eq!(read_json(&mut socket)["type"], "error");
    assert_eq!(close_code(&mut socket), Some(1000));
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// One request by hand: what the product's own client would hide is seen.
fn http(site: &Site, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", site.port())).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if method != "GET" {
        let kind = if method == "POST" { "application/json" } else { "application/octet-stream" };
        head.push_str(&format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len()));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    // A host that has refused need not read the rest.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer");
    let body = answer.split_off(end + 4);
    let head = String::from_utf8(answer).unwrap();
    Answer { status: head[9..12].parse().unwrap(), head, body }
}
