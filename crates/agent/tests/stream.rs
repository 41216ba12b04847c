//! Streams of the runner's socket, forwards, and the agent's own life.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "support/instance.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kohakuriver_agent::SOCKET_FILE;
use support::{Instance, noise, text, wait_until};

/// Answers every connection with what it received, after the sender's end of file.
fn echo_at_end() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                stream.write_all(&received).unwrap();
            });
        }
    });
    port
}

#[test]
fn a_ping_tells_who_answers() {
    let instance = Instance::start();
    let (line, mut stream) = instance.open("{\"target\":\"ping\"}\n");
    let pid = instance.agent_pid();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(line, format!(r#"{{"ok":true,"pid":{pid},"version":"{version}"}}"#));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn only_the_owner_may_connect_to_the_socket() {
    let instance = Instance::start();
    let mode = std::fs::metadata(instance.path(SOCKET_FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_tcp_stream_carries_bulk_data_and_half_close() {
    let instance = Instance::start();
    let port = echo_at_end();
    let data = noise(5_000_000);
    let (line, mut stream) = instance.open(&format!("{{\"target\":\"tcp\",\"port\":{port}}}\n"));
    assert_eq!(line, r#"{"ok":true}"#);
    stream.write_all(&data).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert!(received == data);
}

#[test]
fn a_port_nobody_listens_on_a_bad_line_and_ssh_without_ssh_are_refused_with_a_reason() {
    let instance = Instance::start_with(|config| config.ssh = false);
    let (line, _) = instance.open("{\"target\":\"tcp\",\"port\":1}\n");
    assert!(line.contains("nothing answers at port 1 in the VPS: connection refused"), "{line}");
    let (line, _) = instance.open("{\"target\":\"moon\"}\n");
    assert!(line.starts_with(r#"{"ok":false,"error":"bad request"#), "{line}");
    let (line, _) = instance.open("{\"target\":\"ssh\"}\n");
    assert_eq!(line, r#"{"ok":false,"error":"this VPS was created without --ssh"}"#);
}

#[test]
fn a_forward_reaches_a_port_of_the_instance_by_name_and_keeps_half_close() {
    let instance = Instance::start();
    let port = echo_at_end();
    let data = noise(5_000_000);
    std::fs::write(instance.path("in"), &data).unwrap();
    let output = instance
        .ssh(&["-W", &format!("localhost:{port}")], "")
        .stdin(std::fs::File::open(instance.path("in")).unwrap())
        .output()
        .unwrap();
    assert!(output.stdout == data);
}

#[test]
fn a_forward_to_a_closed_port_is_refused() {
    let instance = Instance::start();
    let output = instance.ssh(&["-W", "127.0.0.1:1"], "").output().unwrap();
    assert!(!output.status.success());
}

#[test]
fn an_orphan_is_reaped() {
    let instance = Instance::start();
    let output = instance.exec("(sleep 0.5 >/dev/null 2>&1 </dev/null & echo $!)");
    let pid = text(&output.stdout).trim().to_owned();
    let parent = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    assert_eq!(parent(), Some(instance.agent_pid()), "the orphan is the agent's");
    wait_until("the orphan is gone, zombie and all", || parent().is_none());
}

#[test]
fn exit_codes_are_right_while_orphans_die_all_around() {
    let instance = Instance::start();
    for code in 0..5 {
        let command = format!(
            "for i in 1 2 3 4 5 6 7 8; do (sleep 0.0$i >/dev/null 2>&1 &) ; done; exit {code}"
        );
        assert_eq!(instance.exec(&command).status.code(), Some(code));
    }
}

#[test]
fn a_stop_ends_the_children_within_the_grace_and_removes_the_socket() {
    let mut instance = Instance::start();
    let mut patient =
        instance.ssh(&[], "echo $$; exec sleep 1000").stdout(Stdio::piped()).spawn().unwrap();
    let mut stubborn = instance
        .ssh(&[], "trap '' TERM; echo $$; while :; do sleep 0.1; done")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pids: Vec<String> = [&mut patient, &mut stubborn]
        .into_iter()
        .map(|child| {
            let mut line = Vec::new();
            let mut byte = [0];
            let stdout = child.stdout.as_mut().unwrap();
            while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
                line.push(byte[0]);
            }
            text(&line)
        })
        .collect();
    let start = Instant::now();
    let pid = instance.agent_pid().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(instance.wait_agent().success());
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(4), "it had its grace: {took:?}");
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
    assert!(!instance.path(SOCKET_FILE).exists());
    let _ = (patient.kill(), stubborn.kill(), patient.wait(), stubborn.wait());
}

#[test]
fn a_socket_left_by_an_earlier_agent_is_replaced() {
    let instance = Instance::start_with_stale_socket();
    let (line, _) = instance.open("{\"target\":\"ping\"}\n");
    assert!(line.starts_with("{\"ok\":true"), "{line}");
}
