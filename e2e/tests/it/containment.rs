//! What somebody with root inside a container cannot do. docs/concepts/containment.md names these tests.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, DEBIAN, Output, Site, run, wait_until};

mod network;
mod unconfined;

fn create(site: &Site, name: &str, image: &str) -> String {
    let task = site.json(&["vps", "create", "--name", name, "--image", image]);
    task["task_id"].as_str().unwrap().to_owned()
}

/// Runs a line of shell as root inside.
fn inside(site: &Site, name: &str, line: &str) -> Output {
    site.kr(&["terminal", "exec", name, "--", "sh", "-c", line])
}

fn docker(arguments: &[&str]) -> String {
    run(Command::new("docker").args(arguments)).ok()
}

fn inspect(id: &str, format: &str) -> String {
    docker(&["inspect", "--format", format, &format!("kohakuriver-vps-{id}")]).trim().to_owned()
}

/// Whether a TCP port answers to somebody inside, within two seconds.
/// Every address that this machine has, both families.
#[test]
fn root_inside_is_not_root_of_the_node() {
    let mut site = Site::new();
    let _server = site.up();
    let id = create(&site, "web", BUSYBOX);
    let refused = |line: &str| {
        let output = inside(&site, "web", line);
        // 127: what should be refused is not even there to be tried.
        assert!(![0, 127].contains(&output.code), "{line}: {output:?}");
    };
    // The kernel's levers.
    refused("echo h > /proc/sysrq-trigger");
    refused("echo 1 > /proc/sys/kernel/panic");
    refused("echo /tmp/x > /proc/sys/kernel/core_pattern");
    refused("head -c 1 /proc/kcore | grep -q .");
    refused("echo x > /sys/kernel/uevent_helper");
    refused("dmesg -c");
    refused("hostname other");
    refused("! (date -s 2001-01-01 2>&1 | grep -q 'not permitted')");
    refused("insmod /dev/null");
    refused("reboot -f");
    // Disks and mounts.
    refused("mount -t tmpfs none /tmp");
    refused("mount -o remount,rw /.kohakuriver/bin");
    refused("mount -o remount,suid,dev /shared");
    refused("umount /.kohakuriver/bin");
    refused("umount /shared");
    refused("mknod /tmp/disk b 254 0");
    refused("mknod /tmp/null c 1 3");
    refused("mount -t cgroup none /tmp");
    refused("unshare -m true");
    refused("unshare -r true");
    refused("nsenter -t 1 -m -- true");
    // A root of one's own is no way to the node's.
    inside(&site, "web", "chroot / test -e /bin").ok();
    let marker = site.path().join("marker");
    fs::write(&marker, "").unwrap();
    refused(&format!("chroot /proc/1/root/../../../.. test -e {}", marker.display()));
    // The network's.
    refused("ip link set eth0 down");
    refused("ip route del default");
    // The engine.
    refused("find / -xdev -name docker.sock | grep .");
    // None but what every container has.
    let devices = inside(&site, "web", "cd /dev && find . -type b").ok();
    assert_eq!(devices, "", "no disk of the node's");
    // The rights of the first process are those of all.
    let rights = inside(&site, "web", "grep CapBnd /proc/1/status").ok();
    assert_eq!(rights.split_whitespace().last(), Some("00000000a00425fb"));
    let seccomp = inside(&site, "web", "grep '^Seccomp:' /proc/self/status").ok();
    assert_eq!(seccomp.split_whitespace().last(), Some("2"), "the engine's filter is on");
    // Processes of others are not seen: the first one is the VPS's own.
    let first = inside(&site, "web", "cat /proc/1/cmdline | tr '\\0' ' '").ok();
    assert!(first.starts_with("/.kohakuriver/bin/kohakuriver agent"), "{first}");
    let host = inspect(
        &id,
        "{{.HostConfig.Privileged}} {{.HostConfig.PidMode}}|{{.HostConfig.UTSMode}}|{{.HostConfig.IpcMode}}|{{.HostConfig.NetworkMode}}",
    );
    assert_eq!(host, format!("false ||private|{}", site.container_network()));
}

#[test]
fn a_vps_sees_of_the_nodes_files_its_own_alone_and_cannot_change_the_agent() {
    let mut site = Site::new();
    let _server = site.up();
    let id = create(&site, "web", BUSYBOX);
    let other = create(&site, "other", BUSYBOX);
    let mounts = inspect(&id, "{{range .Mounts}}{{.Source}}={{.RW}}\n{{end}}");
    let data = site.data_dir();
    let own = data.join("runner/instances").join(&id);
    let mut expected = vec![
        format!("{}=false", data.join("runner/agent").display()),
        format!("{}=false", own.join("etc").display()),
        format!("{}=true", own.join("run").display()),
        format!("{}=true", own.join("own/hostname").display()),
        format!("{}=true", own.join("own/hosts").display()),
        format!("{}=true", own.join("own/resolv.conf").display()),
        format!("{}=true", data.join("shared/shared_data").display()),
    ];
    let mut mounts: Vec<_> = mounts.lines().map(ToOwned::to_owned).collect();
    expected.sort();
    mounts.sort();
    assert_eq!(mounts, expected);
    let agent = data.join("runner/agent/kohakuriver");
    let before = fs::metadata(&agent).unwrap();
    for line in [
        "echo x > /.kohakuriver/bin/kohakuriver",
        "echo x > /proc/1/exe",
        "rm -f /.kohakuriver/bin/kohakuriver",
        "touch /.kohakuriver/bin/new",
        "chmod 4777 /.kohakuriver/bin/kohakuriver",
        "echo '{}' > /.kohakuriver/etc/agent.json",
        "ln -s / /.kohakuriver/etc/x",
        &format!("ls /.kohakuriver/*/../../{other}"),
    ] {
        assert_ne!(inside(&site, "web", line).code, 0, "{line}");
    }
    let after = fs::metadata(&agent).unwrap();
    assert_eq!(
        (before.len(), before.mode(), before.mtime()),
        (after.len(), after.mode(), after.mtime())
    );
    assert_eq!(site.kr(&["terminal", "exec", "other", "--", "echo", "well"]).ok(), "well\n");
    // Its own directory is the container's to write: nothing in it becomes a way to the node's.
    inside(&site, "web", "rm -f /.kohakuriver/run/agent.sock; ln -s /var/run/docker.sock /.kohakuriver/run/agent.sock").ok();
    let fooled = site.kr(&["terminal", "exec", "web", "--", "true"]);
    assert_ne!(fooled.code, 0, "the runner followed a link out of the container");
}

#[test]
fn a_link_to_a_file_of_the_nodes_reads_the_vps_own_by_every_way() {
    let secret = tempfile::Builder::new().prefix("kr-secret").tempfile().unwrap();
    fs::write(secret.path(), "the node's secret").unwrap();
    let mut site = Site::new();
    let _server = site.up();
    create(&site, "web", BUSYBOX);
    let path = secret.path().to_str().unwrap();
    let link = format!(
        "mkdir -p /srv /.kohakuriver/run/x; ln -sf {path} /srv/log; ln -sf / /srv/root; ln -sf {path} /shared/log; ln -sf {path} /root/.ssh"
    );
    inside(&site, "web", &link).ok();
    for way in [
        "/srv/log",
        &format!("/srv/root{path}"),
        "/shared/log",
        path,
        &format!("/srv/../../../..{path}"),
        &format!("/proc/1/root{path}"),
    ] {
        let answer = get(&site, &format!("/api/fs/web/raw?path={way}"));
        assert!(
            !answer.contains("200 OK") && !answer.contains("the node's secret"),
            "{way}: {answer}"
        );
        let target = site.path().join("fetched");
        let copied = site.kr(&["vps", "cp", &format!("web:{way}"), target.to_str().unwrap()]);
        assert!(
            copied.code != 0 || !fs::read_to_string(&target).unwrap_or_default().contains("secret"),
            "{way}"
        );
    }
    // A write through a link changes the VPS's own tree, too.
    let answer = send(&site, "PUT", "/api/fs/web/raw?path=/srv/log", "changed");
    assert_eq!(fs::read_to_string(secret.path()).unwrap(), "the node's secret", "{answer}");
    assert_eq!(inside(&site, "web", "cat /etc/hostname").ok(), "web\n");
    let hostname = get(&site, "/api/fs/web/raw?path=/srv/root/etc/hostname");
    assert!(hostname.ends_with("web\n"), "{hostname}");
}

fn get(site: &Site, path: &str) -> String {
    send(site, "GET", path, "")
}

fn send(site: &Site, method: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", site.port())).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_set_user_id_file_or_a_device_in_shared_storage_means_nothing_to_others() {
    let mut site = Site::new();
    let server = site.up();
    create(&site, "one", DEBIAN);
    create(&site, "two", DEBIAN);
    // BusyBox gives rights back that it does not need; Debian's `id` does not.
    inside(
        &site,
        "one",
        "for i in /shared/id /usr/local/bin/id; do cp /usr/bin/id $i && chmod 4755 $i; done",
    )
    .ok();
    assert_eq!(as_nobody(&site, "two", "/shared/id -u").ok(), "65534\n");
    let own = as_nobody(&site, "one", "/usr/local/bin/id -u").ok();
    assert_eq!(own, "0\n", "in its own VPS such a file has its effect, as sudo needs");
    let shared = site.data_dir().join("shared/shared_data");
    assert_ne!(fs::metadata(shared.join("id")).unwrap().permissions().mode() & 0o4000, 0);
    // A device that the node's own root put there cannot be opened either.
    run(Command::new("mknod").arg(shared.join("null")).args(["c", "1", "3"])).ok();
    assert_ne!(inside(&site, "two", "echo x > /shared/null").code, 0);
    // The node has no trace of it after a clean end, and what runs keeps it.
    let mounted = || mounts_at(&shared);
    assert_eq!(mounted(), 1);
    assert_eq!(server.interrupt(), 0);
    assert_eq!(mounted(), 0);
    let server = site.up();
    assert_eq!(as_nobody(&site, "two", "/shared/id -u").ok(), "65534\n");
    site.kr(&["vps", "stop", "two"]).ok();
    site.kr(&["vps", "restart", "two"]).ok();
    assert_eq!(as_nobody(&site, "two", "/shared/id -u").ok(), "65534\n");
    assert_eq!(mounted(), 1);
    drop(server);
}

/// Runs a program inside as a user without rights.
fn as_nobody(site: &Site, name: &str, line: &str) -> Output {
    inside(site, name, &format!("su -s /bin/sh nobody -c '{line}'"))
}

fn mounts_at(path: &Path) -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = path.to_str().unwrap();
    mounts.lines().filter(|line| line.split(' ').nth(4) == Some(path)).count()
}

#[test]
fn a_fork_bomb_ends_at_the_limit_and_the_vps_can_still_be_ended() {
    let mut site = Site::new();
    let _server = site.up();
    let arguments = ["vps", "create", "--name", "bomb", "--image", BUSYBOX, "--pids-limit", "60"];
    let task = site.json(&arguments);
    let id = task["task_id"].as_str().unwrap();
    inside(&site, "bomb", "(f() { f | f & }; for i in 1 2 3; do f; done) >/dev/null 2>&1 &").ok();
    let container = format!("kohakuriver-vps-{id}");
    std::thread::sleep(Duration::from_secs(3));
    let counted = docker(&["stats", "--no-stream", "--format", "{{.PIDs}}", &container]);
    let count: u32 = counted.trim().parse().unwrap();
    assert!(count <= 60, "{count}");
    site.kr(&["vps", "kill", "bomb"]).ok();
    assert_eq!(site.status("bomb"), "killed");
}

#[test]
fn a_vps_without_room_for_a_process_lets_people_in_again_when_there_is_some() {
    let mut site = Site::new();
    let _server = site.up();
    let arguments = ["vps", "create", "--name", "tight", "--image", BUSYBOX, "--ssh"];
    let task = site.json(&[&arguments[..], &["--pids-limit", "30"]].concat());
    let id = task["task_id"].as_str().unwrap();
    let container = format!("kohakuriver-vps-{id}");
    let address = inspect(id, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}");
    // By the gateway, and by the agent's own port.
    let get_in = || {
        let mut straight = site.plain_ssh("ssh", &site.key_of(id));
        straight.args(["-o", "ProxyJump=none", &format!("root@{address}"), "echo in"]);
        let both = [site.kr(&["ssh", "tight", "--", "echo in"]), run(&mut straight)];
        both.map(|output| output.stdout == "in\n")
    };
    assert_eq!(get_in(), [true; 2]);
    wait_until("it is nearly full", Duration::from_secs(20), || {
        // Again and again: a connection from before may have left its room since.
        let fill = "(while :; do sleep 1000 & done) </dev/null >/dev/null 2>&1 &";
        let _ = inside(&site, "tight", fill);
        get_in() == [false; 2]
    });
    // The shell that found no more room left its own. Now there is none for a connection's thread.
    let mut last = site.command();
    let last = last.args(["terminal", "exec", "tight", "--", "sleep", "1000"]);
    let mut last = last.spawn().unwrap();
    wait_until("it is full", Duration::from_secs(20), || {
        docker(&["stats", "--no-stream", "--format", "{{.PIDs}}", &container]).trim() == "30"
    });
    assert_eq!(get_in(), [false; 2]);
    let listed = docker(&["top", &container, "-eo", "pid,comm"]);
    for pid in listed.lines().filter_map(|line| line.trim().strip_suffix(" sleep")) {
        run(Command::new("kill").arg(pid.trim())).ok();
    }
    wait_until("there is room again", Duration::from_secs(10), || get_in() == [true; 2]);
    assert!(!run(Command::new("docker").args(["logs", &container])).stderr.contains("panicked"));
    last.wait().unwrap();
}

#[test]
fn what_people_do_as_root_in_debian_works() {
    let mut site = Site::new();
    let _server = site.up();
    create(&site, "deb", DEBIAN);
    let does = |line: &str| inside(&site, "deb", line).ok();
    does("useradd --create-home ann && echo ann:pw | chpasswd && usermod -aG adm ann");
    assert_eq!(does("su - ann -c 'id -un'"), "ann\n");
    does("echo x >/home/ann/file && chown ann:ann /home/ann/file && chmod 2750 /home/ann");
    assert_eq!(does("setpriv --reuid ann --regid ann --init-groups -- cat /home/ann/file"), "x\n");
    assert_eq!(does("setpriv --bounding-set -all -- id -u"), "0\n");
    // Set-user-id programs have their effect: this is what sudo lives on.
    does("cp /bin/bash /usr/local/bin/as-root && chmod 4755 /usr/local/bin/as-root");
    assert_eq!(does("su ann -c '/usr/local/bin/as-root -p -c \"id -u\"'"), "0\n");
    does("su ann -c 'sleep 60' & sleep 0.5; pkill -u ann sleep");
    // As Debian's package of ping sets it up, and as its sshd and its package manager live.
    does("cp /bin/true /tmp/raw && setcap cap_net_raw+ep /tmp/raw && su ann -c /tmp/raw");
    does("mkdir -p /tmp/jail/bin && cp /usr/sbin/chroot /tmp && chroot / true && mkfifo /tmp/pipe");
    does("mkdir -p /run/sshd && /usr/sbin/sshd -t || ssh-keygen -A && /usr/sbin/sshd -t");
    let unpacked = "cd /tmp && mkdir -p p/DEBIAN p/opt && printf 'Package: p\\nVersion: 1\\nArchitecture: all\\nMaintainer: a <a@a>\\nDescription: p\\n' >p/DEBIAN/control \
                    && echo y >p/opt/y && dpkg-deb --build p p.deb >/dev/null && apt-get install -y ./p.deb >/dev/null 2>&1 && cat /opt/y && apt-get remove -y p >/dev/null 2>&1";
    assert_eq!(does(unpacked), "y\n");
}

#[test]
fn a_node_that_wants_it_lets_no_program_gain_rights() {
    let mut site = Site::new();
    let _server = site.up_with(&["--no-new-privileges"]);
    create(&site, "strict", DEBIAN);
    inside(&site, "strict", "cp /usr/bin/id /tmp/id && chmod 4755 /tmp/id").ok();
    assert_eq!(as_nobody(&site, "strict", "/tmp/id -u").ok(), "65534\n");
}
