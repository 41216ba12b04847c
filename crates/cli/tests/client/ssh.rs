//! `kohakuriver ssh` and what ssh runs for it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::json;

use crate::support::{Answer, Host, Ran, Sandbox, task};
use crate::{ID, KEY};

#[test]
fn ssh_becomes_ssh_with_its_exit_code() {
    let host = Host::start(|request| {
        let mut state = task(ID, "web", "running", 1);
        state["ssh_host_key"] = json!(KEY);
        if request.path.ends_with("/off") {
            state["status"] = json!("stopped");
        }
        if request.path.ends_with("/nossh") {
            state["ssh_port"] = json!(0);
        }
        Answer::ok(state)
    });
    let sandbox = Sandbox::new();
    let bin = sandbox.home().join("bin");
    fs::create_dir(&bin).unwrap();
    let script = "#!/bin/sh\nfor word; do echo \"$word\"; done\nexit 42\n";
    fs::write(bin.join("ssh"), script).unwrap();
    fs::set_permissions(bin.join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    let run = |args: &[&str]| {
        Ran::from(sandbox.command(host.port, args).env("PATH", &bin).output().unwrap())
    };
    let ran = run(&["ssh", "web", "-u", "me", "ls", "-l", "--json"]);
    assert_eq!(ran.code, 42, "{}", ran.stderr);
    let words: Vec<_> = ran.stdout.lines().collect();
    let alias = format!("kohakuriver-vps-{ID}");
    assert_eq!(words[words.len() - 7..], ["-l", "me", &alias, "--", "ls", "-l", "--json"]);
    assert!(words.contains(&"StrictHostKeyChecking=yes"), "{words:?}");
    let known = sandbox.home().join(".cache/kohakuriver/known_hosts");
    assert_eq!(fs::read_to_string(known).unwrap(), format!("{alias} {KEY}\n"));

    assert_eq!(run(&["ssh", "connect", "web"]).code, 42);
    let ran = run(&["ssh", "off"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("vps restart web"), "{}", ran.stderr);
    assert!(run(&["ssh", "nossh"]).stderr.contains("--ssh"));
    let ran = sandbox.command(host.port, &["ssh", "web"]).env("PATH", "").output().unwrap();
    assert_eq!(ran.status.code(), Some(127));
    assert_eq!(run(&["ssh"]).code, 2);
}

#[test]
fn ssh_config_is_understood_by_ssh() {
    let host = Host::start(|_| {
        let mut state = task(ID, "web", "running", 1);
        state["ssh_host_key"] = json!(KEY);
        Answer::ok(json!([state, task("8", "off", "assigning", 1)]))
    });
    let sandbox = Sandbox::new();
    let file = sandbox.home().join("a conf");
    let ran = sandbox.run(&host, &["ssh", "config", "--output", file.to_str().unwrap()]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{}", ran.stderr);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(&format!("Host kohakuriver-vps-{ID} web\n")), "{text}");
    assert!(!text.contains("off"), "{text}");
    // A machine without OpenSSH has shown enough.
    let Ok(ssh) =
        std::process::Command::new("ssh").arg("-G").arg("-F").arg(&file).arg("web").output()
    else {
        return;
    };
    let settings = String::from_utf8(ssh.stdout).unwrap();
    for line in [
        "user root".to_owned(),
        format!("hostkeyalias kohakuriver-vps-{ID}"),
        format!(
            "userknownhostsfile {}",
            sandbox.home().join(".cache/kohakuriver/known_hosts").display()
        ),
    ] {
        assert!(settings.lines().any(|found| found == line), "{line}\n{settings}");
    }
    assert!(
        settings.contains(&format!("ssh-proxy --pass-socket --proxy-port 8002 --id {ID}")),
        "{settings}"
    );
}

#[test]
fn names_of_other_hosts_stay_out_of_ssh_config() {
    let host = Host::start(|_| {
        let of = |id: &str, reference: &str, access: &str, taken: Option<bool>| {
            let name = reference.split('.').next().unwrap();
            let mut state = task(id, name, "running", 1);
            state["reference"] = json!(reference);
            state["owner_username"] = json!(if access == "owner" { "bob" } else { "mallory" });
            state["access"] = json!(access);
            state["taken"] = json!(taken);
            state["ssh_host_key"] = json!(KEY);
            state
        };
        let mut bad_key = of("17", "key", "owner", None);
        bad_key["ssh_host_key"] = json!("ssh-ed25519 AAAA\n* ssh-ed25519 AAAA");
        Answer::ok(json!([
            of("11", "web.mallory", "use", Some(true)),
            of("12", "spam.mallory", "use", Some(false)),
            of("13", "github.com", "use", Some(true)),
            of("16", "web", "owner", None),
            bad_key,
            of("18", "gitlab", "owner", None),
            of("19", "localhost", "owner", None),
        ]))
    });
    let sandbox = Sandbox::new();
    let folder = sandbox.home().join(".ssh");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config"), "Host GitLab\n  HostName 10.0.0.1\n").unwrap();
    let ran = sandbox.run(&host, &["ssh", "config"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let hosts: Vec<_> = ran.stdout.lines().filter(|line| line.starts_with("Host ")).collect();
    assert_eq!(
        hosts,
        [
            "Host kohakuriver-vps-16 web",
            "Host kohakuriver-vps-18",
            "Host kohakuriver-vps-19",
            "Host kohakuriver-vps-11 web.mallory",
            "Host kohakuriver-vps-13",
        ]
    );
    for part in ["SSH host key", "--as NAME", "'gitlab'", "'localhost'"] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    let ran = sandbox.run(&host, &["ssh", "config", "--prefix", "vps-"]);
    assert!(ran.stdout.contains("Host kohakuriver-vps-18 vps-gitlab\n"), "{}", ran.stdout);
    let wrong = sandbox.run(&host, &["ssh", "config", "--prefix", "x *"]);
    assert_eq!(wrong.code, 2, "{}", wrong.stderr);
}

/// A gateway for one connection: responds, echoes until the client's half ends, then closes.
fn gateway(answer: &'static str) -> (u16, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        if answer.starts_with("SUCCESS") {
            let mut echo = stream.try_clone().unwrap();
            std::io::copy(&mut echo, &mut stream).unwrap();
            stream.write_all(b"bye").unwrap();
        }
        String::from_utf8(line).unwrap()
    });
    (port, served)
}

#[test]
fn ssh_proxy_forwards_bytes_and_half_closes() {
    let (port, served) = gateway("SUCCESS\nSSH-2.0-x\n");
    let sandbox = Sandbox::new();
    let port = port.to_string();
    let mut child = sandbox
        .command(1, &["ssh-proxy", "--proxy-port", &port, "--id", ID])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent: Vec<u8> = (0..4_000_000_u32).map(|i| i.to_le_bytes()[i as usize % 3]).collect();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&copy));
    let mut got = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut got).unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(served.join().unwrap(), format!("REQUEST_TUNNEL {ID}\n"));
    let expected = [b"SSH-2.0-x\n", sent.as_slice(), b"bye"].concat();
    assert!(got == expected, "{} bytes instead of {}", got.len(), expected.len());
}

#[test]
fn a_local_port_leads_to_the_vps() {
    let host = Host::start(|_| Answer::ok(task(ID, "web", "running", 1)));
    let (port, served) = gateway("SUCCESS\nSSH-2.0-x\n");
    let sandbox = Sandbox::new();
    let mut child = sandbox
        .command(host.port, &["ssh", "web", "--local-port", "0"])
        .args(["--proxy-port", &port.to_string()])
        .stderr(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let mut stream = TcpStream::connect(line.trim()).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "SSH-2.0-x\nhellobye");
    assert_eq!(served.join().unwrap(), format!("REQUEST_TUNNEL {ID}\n"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn ssh_proxy_repeats_the_gateways_error() {
    let (port, served) = gateway("ERROR VPS is not running\n");
    let ran =
        Sandbox::new().run_at(1, &["ssh-proxy", "--proxy-port", &port.to_string(), "--id", ID]);
    served.join().unwrap();
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("VPS is not running"), "{}", ran.stderr);
    assert_eq!(Sandbox::new().run_at(1, &["ssh-proxy", "--proxy-port", "1", "--id", ID]).code, 3);
}
