//! Flow control of one connection: a channel that does not read does not stall the others.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "support/instance.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Instance, free_port, noise, text, wait_until};

/// Long enough for a busy computer; a stalled channel stalls for ever.
const PATIENCE: Duration = Duration::from_secs(60);
const BULK: usize = 24 * 1024 * 1024;

/// A target that answers each byte with the same.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                std::io::copy(&mut &stream, &mut &stream)
            });
        }
    });
    port
}

/// A target that accepts and never reads.
fn stalled() -> (u16, std::thread::JoinHandle<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (port, std::thread::spawn(move || listener.accept().unwrap().0))
}

#[track_caller]
fn answers_soon(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for round in 0..20 {
        stream.write_all(&[round]).unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the other forward answers");
        assert_eq!(byte, [round]);
    }
}

/// Writes until nothing more is taken for a while, in the background.
fn fill(stream: &TcpStream) {
    let mut stream = stream.try_clone().unwrap();
    std::thread::spawn(move || {
        let block = noise(64 * 1024);
        for _ in 0..BULK / block.len() {
            if stream.write_all(&block).is_err() {
                return;
            }
        }
    });
    std::thread::sleep(Duration::from_millis(700));
}

struct Master {
    process: Child,
    control: String,
}

impl Drop for Master {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A connection that carries forwards and no session.
fn connect(instance: &Instance, forwards: &[&str]) -> Master {
    let control = format!("ControlPath={}", instance.path("control").display());
    let options = [&["-N", "-M", "-o", &control, "-o", "ExitOnForwardFailure=yes"], forwards];
    let process = instance.ssh(&options.concat(), "").spawn().unwrap();
    wait_until("the master listens", || instance.path("control").exists());
    Master { process, control }
}

fn session(instance: &Instance, master: &Master, command: &str) -> Command {
    instance.ssh(&["-o", &master.control], command)
}

#[test]
fn a_forward_whose_target_does_not_read_keeps_no_other_waiting_and_goes_on_when_it_does() {
    let instance = Instance::start();
    let (echo_port, (stalled_port, stalled)) = (echo(), stalled());
    let (first, second) = (free_port(), free_port());
    let to_echo = format!("{first}:127.0.0.1:{echo_port}");
    let to_stalled = format!("{second}:127.0.0.1:{stalled_port}");
    let _master = connect(&instance, &["-L", &to_echo, "-L", &to_stalled]);
    let mut talker = TcpStream::connect(("127.0.0.1", first)).unwrap();
    answers_soon(&mut talker);
    let filled = TcpStream::connect(("127.0.0.1", second)).unwrap();
    fill(&filled);
    answers_soon(&mut talker);
    // It was only waiting: all of it arrives once somebody reads.
    let mut target = stalled.join().unwrap();
    target.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut received = vec![0; BULK];
    target.read_exact(&mut received).unwrap();
    assert!(received == noise(64 * 1024).repeat(BULK / (64 * 1024)));
    answers_soon(&mut talker);
}

#[test]
fn a_forward_whose_client_does_not_read_keeps_no_other_waiting() {
    let instance = Instance::start();
    let echo_port = echo();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let source = listener.local_addr().unwrap().port();
    std::thread::spawn(move || fill_all(listener.accept().unwrap().0));
    let (first, second) = (free_port(), free_port());
    let to_echo = format!("{first}:127.0.0.1:{echo_port}");
    let to_source = format!("{second}:127.0.0.1:{source}");
    let master = connect(&instance, &["-L", &to_echo, "-L", &to_source]);
    let mut talker = TcpStream::connect(("127.0.0.1", first)).unwrap();
    let _silent = TcpStream::connect(("127.0.0.1", second)).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    answers_soon(&mut talker);
    let output = session(&instance, &master, "echo here").output().unwrap();
    assert_eq!(text(&output.stdout), "here\n");
}

fn fill_all(mut stream: TcpStream) {
    let block = noise(64 * 1024);
    while stream.write_all(&block).is_ok() {}
}

#[test]
fn a_program_that_does_not_read_its_input_keeps_no_other_session_waiting() {
    let instance = Instance::start();
    let master = connect(&instance, &[]);
    let mut sleeper =
        session(&instance, &master, "sleep 1000").stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = sleeper.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || {
        let block = noise(64 * 1024);
        while stdin.write_all(&block).is_ok() {}
    });
    std::thread::sleep(Duration::from_millis(700));
    for _ in 0..5 {
        let output = session(&instance, &master, "echo here").output().unwrap();
        assert_eq!(text(&output.stdout), "here\n");
    }
    assert!(sleeper.try_wait().unwrap().is_none(), "nobody ended it");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    drop(master);
    feeder.join().unwrap();
}

#[test]
fn a_stalled_forward_leaves_a_transfer_beside_it_its_whole_speed() {
    let instance = Instance::start();
    let (stalled_port, _stalled) = stalled();
    let port = free_port();
    let to_stalled = format!("{port}:127.0.0.1:{stalled_port}");
    let master = connect(&instance, &["-L", &to_stalled]);
    let filled = TcpStream::connect(("127.0.0.1", port)).unwrap();
    fill(&filled);
    let data = noise(BULK);
    std::fs::write(instance.path("in"), &data).unwrap();
    let output = session(&instance, &master, "cat")
        .stdin(std::fs::File::open(instance.path("in")).unwrap())
        .output()
        .unwrap();
    assert!(output.stdout == data);
}

#[test]
fn what_a_stalled_channel_holds_of_the_agents_memory_is_bounded() {
    let instance = Instance::start();
    let resident = || {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", instance.agent_pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let (stalled_port, _stalled) = stalled();
    let port = free_port();
    let to_stalled = format!("{port}:127.0.0.1:{stalled_port}");
    let _master = connect(&instance, &["-L", &to_stalled]);
    let before = resident();
    let filled = TcpStream::connect(("127.0.0.1", port)).unwrap();
    fill(&filled);
    let grown = resident().saturating_sub(before);
    assert!(grown < 12 * 1024, "{grown} KiB more");
}

/// Both sides take new keys after each gibibyte. What the client has sent before it knows of that may be a whole
/// window, which has grown by then.
#[test]
fn new_keys_are_taken_while_a_whole_window_is_on_its_way() {
    const KEYS_LAST: usize = 1 << 30;
    const AHEAD: usize = 2 * 1024 * 1024;
    let instance = Instance::start();
    let mut ssh = instance.ssh(&[], "wc -c");
    let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = ssh.stdin.take().unwrap();
    let block = vec![0; 64 * 1024];
    let mut send = |bytes: usize| {
        for _ in 0..bytes / block.len() {
            input.write_all(&block).unwrap();
        }
    };
    send(KEYS_LAST - AHEAD / 2);
    // All of it has arrived, and window is granted for it.
    std::thread::sleep(Duration::from_secs(1));
    let agent = Pid::from_raw(i32::try_from(instance.agent_pid()).unwrap());
    kill(agent, Signal::SIGSTOP).unwrap();
    send(AHEAD);
    std::thread::sleep(Duration::from_millis(250));
    kill(agent, Signal::SIGCONT).unwrap();
    send(AHEAD);
    drop(input);
    let output = ssh.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout).trim(), (KEYS_LAST + AHEAD * 3 / 2).to_string());
}
