//! Virtual machines as people meet them: the same commands as for containers, on real QEMU.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use kohakuriver_e2e::{Server, Site, Terminal, run, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

mod distributions;
mod guarded;
mod node;

const BOOT: Duration = Duration::from_secs(90);

fn site() -> Site {
    Site::new().with_micro_image()
}

fn create(site: &Site, name: &str, more: &[&str]) {
    let arguments = ["vps", "create", "--backend", "qemu", "--vm-image", "micro", "--name", name];
    let size = ["--vm-memory", "160", "--vm-disk", "1", "-c", "1", "--ssh"];
    site.kr(&[&arguments[..], &size, more].concat()).ok();
}

fn inside(site: &Site, name: &str, command: &str) -> String {
    site.kr(&["terminal", "exec", name, "--", "sh", "-c", command]).ok()
}

fn disks(site: &Site) -> PathBuf {
    site.data_dir().join("runner/vm/disks")
}

/// Nothing of any machine is left on the node.
fn nothing_is_left(site: &Site) {
    wait_until("nothing is left", Duration::from_secs(20), || {
        site.machines().is_empty()
            && site.taps().is_empty()
            && fs::read_dir(disks(site)).map_or(0, Iterator::count) == 0
    });
    let snapshots = site.data_dir().join("runner/vm/snapshots");
    assert_eq!(fs::read_dir(snapshots).map_or(0, Iterator::count), 0);
    assert_eq!(site.json(&["node", "list"])[0]["cores_in_use"], 0);
}

#[test]
fn every_verb_of_the_page_works_on_a_machine() {
    let mut site = site();
    let _server = site.up();
    let node = site.json(&["node", "list"])[0]["hostname"].as_str().unwrap().to_owned();
    create(&site, "vm", &["-t", &node]);
    let task = site.json(&["vps", "status", "vm"]);
    assert_eq!((&task["vps_backend"], &task["vm_image"]), (&"qemu".into(), &"micro".into()));
    assert!(task["vm_ip"].as_str().unwrap().starts_with("10.214."), "{task}");
    assert_eq!(site.machines().len(), 1);

    // Every way in.
    assert_eq!(site.kr(&["ssh", "vm", "--", "hostname"]).ok(), "vm\n");
    let key = site.key_of(task["task_id"].as_str().unwrap());
    let mut ssh = site.plain_ssh("ssh", &key);
    assert_eq!(run(ssh.args(["root@vm", "echo $((6*7))"])).ok(), "42\n");
    let file = site.path().join("file");
    fs::write(&file, vec![7; 300_000]).unwrap();
    run(site.plain_ssh("scp", &key).arg(&file).arg("root@vm:/root/copy")).ok();
    site.kr(&["vps", "cp", "vm:/root/copy", site.path().join("back").to_str().unwrap()]).ok();
    assert_eq!(fs::read(site.path().join("back")).unwrap(), vec![7; 300_000]);
    let mut terminal = Terminal::start(site.command().args(["connect", "vm"]));
    terminal.type_in("echo on-$((40+2))\n");
    terminal.wait_for("on-42");
    drop(terminal);
    inside(
        &site,
        "vm",
        "setsid sh -c 'while :; do echo served | nc -l -p 8080; done' </dev/null >/dev/null 2>&1 &",
    );
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forward = Server::start(site.command().args(["forward", "vm", &format!("8080:{port}")]));
    wait_until("the service is reached", Duration::from_secs(10), || {
        let mut text = String::new();
        TcpStream::connect(("127.0.0.1", port))
            .and_then(|mut stream| stream.read_to_string(&mut text))
            .is_ok_and(|_| text == "served\n")
    });
    forward.kill();

    // What a machine cannot do is refused by name.
    for verb in ["pause", "resume"] {
        site.kr(&["vps", verb, "vm"]).fails(1, &["cannot be paused", "stop", "restart"]);
    }

    // The disk and the host key stay over every kind of end.
    let host_key = task["ssh_host_key"].clone();
    inside(&site, "vm", "echo kept >/root/file; sync");
    site.kr(&["vps", "stop", "vm"]).ok();
    assert_eq!(
        (site.status("vm").as_str(), site.machines().len(), site.taps().len()),
        ("stopped", 0, 0)
    );
    site.kr(&["vps", "restart", "vm"]).ok();
    site.kr(&["vps", "kill", "vm"]).ok();
    assert_eq!((site.status("vm").as_str(), site.machines().len()), ("killed", 0));
    site.kr(&["vps", "restart", "vm"]).ok();
    assert_eq!(inside(&site, "vm", "cat /root/file"), "kept\n");
    assert_eq!(site.json(&["vps", "status", "vm"])["ssh_host_key"], host_key);
    site.kr(&["vps", "delete", "vm", "--yes"]).fails(1, &["running"]);
    site.kr(&["vps", "delete", "vm", "--yes", "--force"]).ok();
    nothing_is_left(&site);
}

#[test]
fn snapshots_of_a_machine_are_restored_and_copied() {
    let mut site = site();
    let _server = site.up();
    create(&site, "vm", &[]);
    inside(&site, "vm", "echo one >/root/file; sync");
    site.kr(&["vps", "snapshot", "create", "vm", "--name", "first"]).ok();
    inside(&site, "vm", "echo two >/root/file; sync");
    site.kr(&["vps", "create", "--name", "copy", "--from-snapshot", "vm@first", "--ssh"]).ok();
    assert_eq!(inside(&site, "copy", "cat /root/file; hostname"), "one\ncopy\n");
    let key = |name| site.json(&["vps", "status", name])["ssh_host_key"].clone();
    assert_ne!(key("copy"), key("vm"), "a copy is another machine");
    site.kr(&["vps", "stop", "vm"]).ok();
    site.kr(&["vps", "snapshot", "restore", "vm", "first", "--yes"]).ok();
    wait_until("it is restored", BOOT, || site.status("vm") == "running");
    assert_eq!(inside(&site, "vm", "cat /root/file"), "one\n");
    for name in ["vm", "copy"] {
        site.kr(&["vps", "delete", name, "--yes", "--force"]).ok();
    }
    nothing_is_left(&site);
}

#[test]
fn ends_of_a_vm_are_reported_with_their_reasons() {
    let mut site = site();
    let _server = site.up();
    create(&site, "vm", &[]);
    kill(Pid::from_raw(site.machines()[0]), Signal::SIGKILL).unwrap();
    wait_until("it is told", Duration::from_secs(10), || site.status("vm") == "failed");
    assert_eq!(site.json(&["vps", "status", "vm"])["exit_code"], 137);
    assert_eq!(site.taps().len(), 0);
    site.kr(&["vps", "restart", "vm"]).ok();

    // The power button from inside, and a kernel that gives up.
    let _ = site.kr(&["terminal", "exec", "vm", "--", "poweroff"]);
    wait_until("it is off", Duration::from_secs(30), || site.status("vm") == "stopped");
    site.kr(&["vps", "restart", "vm"]).ok();
    let _ = site.kr(&["terminal", "exec", "vm", "--", "sh", "-c", "echo c >/proc/sysrq-trigger"]);
    wait_until("it is over", Duration::from_secs(30), || site.status("vm") == "failed");
    assert_eq!(site.json(&["vps", "status", "vm"])["exit_code"], 1);
    site.kr(&["vps", "delete", "vm", "--yes"]).ok();
    nothing_is_left(&site);
}

#[test]
fn killing_host_and_runner_at_any_point_of_a_machines_life_loses_and_doubles_nothing() {
    let mut site = site();
    let mut server = site.up();
    for round in 0..5u64 {
        let name = format!("r{round}");
        let mut client = site
            .command()
            .args(["vps", "create", "--backend", "qemu", "--vm-image", "micro", "--ssh"])
            .args(["--vm-memory", "160", "--vm-disk", "1", "-c", "1", "--name", &name])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(60 + round * round * 90));
        server.kill();
        let _ = client.kill();
        let _ = client.wait();
        server = site.up();
        wait_until("it is settled", BOOT, || {
            let list = site.json(&["vps", "list", "--all"]);
            list.as_array().unwrap().iter().all(|task| {
                matches!(task["status"].as_str(), Some("running" | "failed"))
                    && task["transition"].is_null()
            })
        });
        if site.status(&name) == "running" {
            assert_eq!((site.machines().len(), site.taps().len()), (1, 1));
            let pid = site.machines()[0];
            inside(&site, &name, "true");
            // One that runs is taken up as it is.
            server.kill();
            server = site.up();
            wait_until("it is back", BOOT, || site.status(&name) == "running");
            assert_eq!(site.machines(), [pid]);
            inside(&site, &name, "true");
            site.kr(&["vps", "delete", &name, "--yes", "--force"]).ok();
        } else {
            let _ = site.kr(&["vps", "delete", &name, "--yes", "--force"]);
        }
        nothing_is_left(&site);
    }
    assert_eq!(server.interrupt(), 0);
}

#[test]
fn a_guest_that_never_comes_up_is_told_with_its_consoles_last_words_and_can_be_watched() {
    let mut site = site();
    // Its kernel finds no root.
    let image = site.data_dir().join("shared/vm-images/micro/image.json");
    let text = fs::read_to_string(&image).unwrap().replace("panic=", "x=");
    fs::remove_file(&image).unwrap();
    fs::write(&image, text.replace("root=/dev/vda", "root=/dev/vdz")).unwrap();
    let _server = site.up_with(&["--vm-boot-limit", "45", "--vm-stop-grace", "2"]);
    let mut client = site
        .command()
        .args(["vps", "create", "--backend", "qemu", "--vm-image", "micro", "--name", "vm"])
        .args(["--vm-memory", "160", "--vm-disk", "1", "-c", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("QEMU runs", Duration::from_secs(15), || !site.machines().is_empty());
    let mut console = Terminal::start(site.command().args(["terminal", "attach", "vm"]));
    wait_until("it says why", BOOT, || console.shown().contains("vdz"));
    console.type_in("\r~d");
    assert_eq!(console.wait(), 0);
    let mut said = String::new();
    client.stderr.as_mut().unwrap().read_to_string(&mut said).unwrap();
    assert!(!client.wait().unwrap().success());
    assert!(said.contains("vdz"), "{said}");
    nothing_is_left(&site);
}

#[test]
fn what_stands_in_a_machines_way_is_said_before_anything_is_made() {
    let mut site = site();
    let _server = site.up();
    let refused = |more: &[&str], code: i32, parts: &[&str]| {
        let arguments = ["vps", "create", "--backend", "qemu", "--name", "no"];
        site.kr(&[&arguments[..], more].concat()).fails(code, parts);
    };
    refused(&["--vm-image", "nowhere"], 1, &["nowhere", "micro", "qemu image"]);
    refused(&["--vm-image", "../micro"], 2, &["../micro"]);
    refused(&["--vm-image", "micro", "--vm-memory", "999999"], 1, &["memory"]);
    refused(&["--image", "debian:12"], 2, &["--image"]);
    site.kr(&["vps", "create", "--vm-disk", "5"]).fails(2, &["--backend qemu"]);

    // Somebody else's device has the bridge's name.
    run(Command::new("ip").args(["link", "add", &site.bridge(), "type", "bridge"])).ok();
    run(Command::new("ip").args(["link", "set", &site.bridge(), "up"])).ok();
    refused(&["--vm-image", "micro"], 1, &[&site.bridge(), "ip link del"]);
    nothing_is_left(&site);
}
