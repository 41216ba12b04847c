//! Forwards in every direction, as OpenSSH's client asks for them.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "support/instance.rs"]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::{Instance, free_port, text, wait_until};

/// Ends when it is dropped, however the test goes.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Listens and greets each client that connects.
fn greeter() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"hello\n");
        }
    });
    port
}

fn greeting(mut stream: impl Read) -> String {
    let mut said = String::new();
    let _ = stream.read_to_string(&mut said);
    said
}

fn connect_tcp(port: u16) -> String {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    greeting(stream)
}

/// A master without a session, once it is up.
fn master(instance: &Instance, options: &[&str]) -> (Background, String) {
    let control = format!("ControlPath={}", instance.path("control").display());
    let all = [&["-N", "-M", "-o", &control, "-o", "ExitOnForwardFailure=yes"], options].concat();
    let process = Background(instance.ssh(&all, "").spawn().unwrap());
    wait_until("the master listens", || instance.path("control").exists());
    (process, control)
}

#[test]
fn a_remote_port_leads_to_the_client_until_it_is_cancelled_and_is_open_on_loopback_only() {
    let instance = Instance::start();
    let port = free_port();
    let forward = format!("0.0.0.0:{port}:127.0.0.1:{}", greeter());
    let (_master, control) = master(&instance, &["-R", &forward]);
    wait_until("it is open", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert_eq!(connect_tcp(port), "hello\n");
    let addresses = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let wildcard = format!("00000000:{port:04X} 00000000:0000 0A");
    assert!(!addresses.contains(&wildcard), "it listens for everybody");
    let cancel = instance.ssh(&["-o", &control, "-O", "cancel", "-R", &forward], "").output();
    assert!(cancel.unwrap().status.success());
    wait_until("it is closed", || TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_remote_port_of_zero_is_chosen_and_told_and_ends_with_the_connection() {
    let instance = Instance::start();
    let forward = format!("0:127.0.0.1:{}", greeter());
    let mut ssh = instance.ssh(&["-N", "-v", "-R", &forward], "");
    let mut child = Background(ssh.stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.starts_with("Allocated port ")).unwrap();
    let port: u16 = line.split(' ').nth(2).unwrap().parse().unwrap();
    assert_eq!(connect_tcp(port), "hello\n");
    let v6 = TcpStream::connect((IpAddr::from(std::net::Ipv6Addr::LOCALHOST), port));
    if let Ok(stream) = v6 {
        assert_eq!(greeting(stream), "hello\n");
    }
    drop(child);
    wait_until("it is closed", || TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_remote_port_that_is_taken_or_privileged_or_one_too_many_is_refused() {
    let instance = Instance::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = |user: &str, port: u16| {
        let forward = format!("{port}:127.0.0.1:1");
        let options = ["-o", "ExitOnForwardFailure=yes", "-R", &forward];
        let output = instance.ssh_as(user, "id", &options, "true").output().unwrap();
        text(&output.stderr).contains("remote port forwarding failed")
    };
    assert!(refused("root", taken.local_addr().unwrap().port()));
    assert!(refused("nobody", 1023));
    let many: Vec<String> =
        (0..65).flat_map(|n| ["-R".to_owned(), format!("0:127.0.0.1:{}", n + 1)]).collect();
    let many: Vec<&str> = ["-v"].into_iter().chain(many.iter().map(String::as_str)).collect();
    let output = instance.ssh(&many, "sleep 0.3; echo lives").output().unwrap();
    assert_eq!(text(&output.stdout), "lives\n");
    let said = text(&output.stderr);
    assert_eq!(said.matches("port forwarding failed").count(), 1, "{said}");
}

#[test]
fn a_local_socket_leads_to_a_socket_of_the_instance_with_the_users_rights() {
    let instance = Instance::start();
    std::fs::set_permissions(instance.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (here, there) = (instance.path("here.sock"), instance.path("there.sock"));
    let listener = UnixListener::bind(&there).unwrap();
    std::fs::set_permissions(&there, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"hello\n");
        }
    });
    let forward = format!("{}:{}", here.display(), there.display());
    for (user, expected) in [("root", "hello\n"), ("nobody", "")] {
        let _ = std::fs::remove_file(&here);
        let mut ssh = instance.ssh_as(user, "id", &["-N", "-L", &forward], "");
        let _child = Background(ssh.spawn().unwrap());
        wait_until("the client listens", || here.exists());
        assert_eq!(greeting(UnixStream::connect(&here).unwrap()), expected, "{user}");
    }
}

#[test]
fn a_remote_socket_leads_to_the_client_belongs_to_the_user_and_is_removed() {
    let instance = Instance::start();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(instance.dir.path(), open).unwrap();
    let path = instance.path("remote.sock");
    let forward = format!("{}:127.0.0.1:{}", path.display(), greeter());
    for user in ["root", "nobody"] {
        let mut ssh = instance.ssh_as(user, "id", &["-N", "-R", &forward], "");
        let child = Background(ssh.spawn().unwrap());
        wait_until("the agent listens", || UnixStream::connect(&path).is_ok());
        assert_eq!(greeting(UnixStream::connect(&path).unwrap()), "hello\n");
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!((meta.uid() == 0, meta.mode() & 0o777), (user == "root", 0o600));
        drop(child);
        wait_until("the socket is gone", || !path.exists());
    }
    let closed = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(instance.dir.path(), closed).unwrap();
    let options = ["-o", "ExitOnForwardFailure=yes", "-R", &forward];
    let output = instance.ssh_as("nobody", "id", &options, "true").output().unwrap();
    assert!(!output.status.success() && !path.exists());
}

#[test]
fn the_clients_key_agent_can_be_used_by_its_user_alone_and_is_gone_afterwards() {
    let instance = Instance::start();
    let socket = instance.path("my-agent.sock");
    let mut agent = Command::new("ssh-agent");
    agent.args(["-D", "-a"]).arg(&socket).stdout(Stdio::null());
    let _agent = Background(agent.spawn().unwrap());
    wait_until("the key agent listens", || socket.exists());
    let mut add = Command::new("ssh-add");
    add.arg("-q").arg(instance.path("id_wrong")).env("SSH_AUTH_SOCK", &socket);
    assert!(add.stderr(Stdio::null()).status().unwrap().success());
    let command = "ssh-add -l; echo $SSH_AUTH_SOCK; stat -c '%a %U' $(dirname $SSH_AUTH_SOCK)";
    let mut ssh = instance.ssh(&["-A"], command);
    let output = ssh.env("SSH_AUTH_SOCK", &socket).output().unwrap();
    let shown = text(&output.stdout);
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].contains("them") && lines[0].ends_with("(ED25519)"), "{shown}");
    assert_eq!(lines[2], "700 root");
    let directory = std::path::Path::new(lines[1]).parent().unwrap();
    wait_until("the directory is gone", || !directory.exists());
    let output = instance.ssh(&[], "echo ${SSH_AUTH_SOCK-none}").output().unwrap();
    assert_eq!(text(&output.stdout), "none\n");
}

#[test]
fn an_editor_gets_in_with_a_script_on_stdin_and_a_socks_port() {
    let instance = Instance::start();
    let (socks, target) = (free_port(), greeter());
    let mut ssh = instance.ssh(&["-T", "-D", &socks.to_string()], "bash");
    let child = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut child = Background(child);
    let mut stdin = child.0.stdin.take().unwrap();
    stdin.write_all(b"echo listeningOn=$((40 + 2))\n").unwrap();
    let mut stdout = BufReader::new(child.0.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "listeningOn=42\n");
    for name in ["localhost", "127.0.0.1"] {
        let mut stream = TcpStream::connect(("127.0.0.1", socks)).unwrap();
        stream.write_all(&[5, 1, 0]).unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
        let mut request = vec![5, 1, 0, 3, u8::try_from(name.len()).unwrap()];
        request.extend_from_slice(name.as_bytes());
        request.extend_from_slice(&target.to_be_bytes());
        stream.write_all(&request).unwrap();
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[1], 0, "{name}");
        assert_eq!(greeting(stream), "hello\n");
    }
    drop(stdin);
    assert!(child.0.wait().unwrap().success());
}

#[test]
fn a_client_in_the_background_keeps_its_forward_and_is_told_that_we_live() {
    let instance = Instance::start();
    let port = free_port();
    let forward = format!("{port}:127.0.0.1:{}", greeter());
    let options =
        ["-N", "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=2", "-L", &forward];
    let mut child = Background(instance.ssh(&options, "").spawn().unwrap());
    std::thread::sleep(Duration::from_secs(4));
    assert!(child.0.try_wait().unwrap().is_none(), "the client gave us up");
    assert_eq!(connect_tcp(port), "hello\n");
}
