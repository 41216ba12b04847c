//! Sessions, as OpenSSH's client sees them. They need root, as the agent in an instance has it.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "support/instance.rs"]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{Instance, noise, text, wait_until};

const BULK: usize = 50 * 1024 * 1024;

#[test]
fn a_command_returns_its_exit_code_and_keeps_output_and_errors_apart() {
    let instance = Instance::start();
    let output = instance.exec("echo out; echo err >&2; exit 42");
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(text(&output.stdout), "out\n");
    assert_eq!(text(&output.stderr), "err\n");
}

#[test]
fn a_command_that_cannot_be_found_is_127() {
    let instance = Instance::start();
    assert_eq!(instance.exec("no-such-command").status.code(), Some(127));
}

#[test]
fn standard_input_arrives_and_its_end_ends_the_command() {
    let instance = Instance::start();
    let mut ssh = instance.ssh(&[], "cat; echo end");
    let mut child = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hi\n").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), "hi\nend\n");
}

#[test]
fn bulk_data_arrives_whole_in_both_directions() {
    let instance = Instance::start();
    let data = noise(BULK);
    std::fs::write(instance.path("in"), &data).unwrap();
    let target = instance.path("out");
    let sent = instance
        .ssh(&[], &format!("cat > {}", target.display()))
        .stdin(std::fs::File::open(instance.path("in")).unwrap())
        .status()
        .unwrap();
    assert!(sent.success());
    assert!(std::fs::read(&target).unwrap() == data);
    let output = instance.exec(&format!("cat {}", target.display()));
    assert!(output.stdout == data);
}

#[test]
fn bulk_data_in_both_directions_at_once_arrives_whole() {
    let instance = Instance::start();
    let data = noise(BULK);
    std::fs::write(instance.path("in"), &data).unwrap();
    let output = instance
        .ssh(&[], "cat")
        .stdin(std::fs::File::open(instance.path("in")).unwrap())
        .output()
        .unwrap();
    assert!(output.stdout == data);
}

#[test]
fn a_program_that_writes_more_than_it_reads_and_starts_late_gets_and_gives_all() {
    let instance = Instance::start();
    let data = noise(BULK);
    std::fs::write(instance.path("in"), &data).unwrap();
    let output = instance
        .ssh(&[], "sleep 2; tee /dev/stderr 2>/dev/fd/1 | (tee /dev/fd/3 | cat) 3>&1")
        .stdin(std::fs::File::open(instance.path("in")).unwrap())
        .output()
        .unwrap();
    assert_eq!(output.stdout.len(), 4 * data.len());
}

#[test]
fn output_of_a_child_that_outlives_the_command_arrives() {
    let instance = Instance::start();
    let output = instance.exec("(sleep 2; echo late; echo later >&2) & echo early; exit 3");
    assert_eq!(text(&output.stdout), "early\nlate\n");
    assert_eq!(text(&output.stderr), "later\n");
    assert_eq!(output.status.code(), Some(3));
}

/// Ends a process of the test's own.
struct Background(String);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-9", &self.0]).status();
    }
}

#[test]
fn daemon_with_redirected_output_holds_no_session() {
    let instance = Instance::start();
    let output = instance.exec("sleep 1000 </dev/null >/dev/null 2>&1 & echo $!");
    let daemon = Background(text(&output.stdout).trim().to_owned());
    assert!(output.status.success());
    assert!(std::path::Path::new(&format!("/proc/{}", daemon.0)).exists());
}

#[test]
fn exit_status_does_not_wait_for_the_end_of_the_output() {
    let instance = Instance::start();
    let command = "sleep 1000 & echo $!; exit 3";
    let mut ssh = instance.ssh(&["-v", "-o", "LogLevel=DEBUG1"], command);
    let mut client = ssh.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pid = String::new();
    let mut stdout = BufReader::new(client.stdout.take().unwrap());
    stdout.read_line(&mut pid).unwrap();
    let holder = Background(pid.trim().to_owned());
    let mut log = BufReader::new(client.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("rtype exit-status")));
    assert!(client.try_wait().unwrap().is_none(), "the output goes on");
    drop(holder);
    log.for_each(drop);
    assert_eq!(client.wait().unwrap().code(), Some(3));
}

#[test]
fn terminal_ends_with_its_program_whatever_holds_it() {
    let instance = Instance::start();
    for child in ["sleep 1000", "yes"] {
        let command = format!("trap '' HUP; {child} & echo pid $! end; exit 3");
        let output = instance.ssh(&["-tt"], &command).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{child}");
        let shown = text(&output.stdout);
        let words: Vec<&str> = shown.split_whitespace().collect();
        let at = words.iter().position(|word| word.ends_with("pid")).unwrap();
        assert_eq!(words[at + 2], "end", "{child}");
        drop(Background(words[at + 1].to_owned()));
    }
}

#[test]
fn all_that_a_program_wrote_to_its_terminal_arrives() {
    let instance = Instance::start();
    for _ in 0..10 {
        let output = instance.ssh(&["-tt"], "seq 20000").output().unwrap();
        let shown = text(&output.stdout);
        assert_eq!(shown.lines().count(), 20000);
        assert_eq!(shown.lines().last(), Some("20000"));
    }
}

#[test]
fn a_slow_reader_loses_nothing_although_the_command_has_ended() {
    let instance = Instance::start();
    let mut ssh = instance.ssh(&[], "head -c 8000000 /dev/zero");
    let mut child = ssh.stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let mut received = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), 8_000_000);
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_environment_is_the_images_the_configs_the_users_and_the_clients() {
    let instance = Instance::start();
    let output = instance
        .ssh(&["-o", "SendEnv=LC_TEST LD_LIBRARY_PATH"], "env; pwd")
        .env("LC_TEST", "client")
        .env("LD_LIBRARY_PATH", "/evil")
        .output()
        .unwrap();
    let shown = text(&output.stdout);
    for line in [
        "FROM_IMAGE=image",
        "FROM_CONFIG=config",
        "LC_TEST=client",
        "HOME=/root",
        "USER=root",
        "LOGNAME=root",
        "SSH_CONNECTION=UNKNOWN 65535 UNKNOWN 65535",
        "/root",
    ] {
        assert!(shown.lines().any(|found| found == line), "{line} in\n{shown}");
    }
    assert!(!shown.contains("/evil"));
}

#[test]
fn a_terminal_has_a_device_a_size_and_a_type() {
    let instance = Instance::start();
    let output = instance
        .ssh(&["-tt"], "tty; stty size; echo $TERM $SSH_TTY; test -t 0 && echo yes")
        .env("TERM", "vt220")
        .output()
        .unwrap();
    let shown = text(&output.stdout);
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{shown}");
    assert_eq!(lines[1], "0 0");
    assert_eq!(lines[2], format!("vt220 {}", lines[0]));
    assert_eq!(lines[3], "yes");
}

#[test]
fn a_window_change_reaches_the_program() {
    let instance = Instance::start();
    let pty = nix::pty::openpty(None, None).unwrap();
    let device = nix::unistd::ttyname(&pty.slave).unwrap();
    let resize = |rows: &str, columns: &str| {
        let resized = std::process::Command::new("stty")
            .arg("-F")
            .arg(&device)
            .args(["rows", rows, "cols", columns])
            .status();
        assert!(resized.unwrap().success());
    };
    resize("30", "90");
    let command = "trap 'stty size; exit' WINCH; stty size; while :; do sleep 0.1; done";
    let mut child = instance
        .ssh(&["-tt"], command)
        .stdin(Stdio::from(pty.slave.try_clone().unwrap()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut shown = vec![0; 7];
    stdout.read_exact(&mut shown).unwrap();
    assert_eq!(text(&shown), "30 90\r\n");
    resize("41", "99");
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGWINCH).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "41 99\r\n");
    child.wait().unwrap();
}

#[test]
fn a_login_shell_starts_in_a_terminal_and_hangs_up_with_the_client() {
    let instance = Instance::start();
    let mut child =
        instance.ssh(&["-tt"], "").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let pid_file = instance.path("pid");
    let command = format!("echo $0 $$ > {}\n", pid_file.display());
    stdin.write_all(command.as_bytes()).unwrap();
    let mut written = String::new();
    wait_until("the shell has run a line", || {
        written = std::fs::read_to_string(&pid_file).unwrap_or_default();
        written.ends_with('\n')
    });
    let (name, pid) = written.trim().split_once(' ').unwrap();
    assert!(name.starts_with('-'), "{name} is not a login shell");
    child.kill().unwrap();
    child.wait().unwrap();
    let process = format!("/proc/{pid}");
    wait_until("the shell is gone", || !std::path::Path::new(&process).exists());
}

#[test]
fn a_death_by_signal_is_not_an_exit_code() {
    let instance = Instance::start();
    let output = instance.ssh(&["-o", "LogLevel=VERBOSE"], "kill -TERM $$").output().unwrap();
    // OpenSSH's client answers 255 for a session without an exit status.
    assert_eq!(output.status.code(), Some(255));
}

#[test]
fn a_wrong_key_and_an_unknown_user_are_refused() {
    let instance = Instance::start();
    for (user, key) in [("root", "id_wrong"), ("nosuchuser", "id")] {
        let output = instance.ssh_as(user, key, &[], "true").output().unwrap();
        assert_eq!(output.status.code(), Some(255));
        assert!(text(&output.stderr).contains("Permission denied (publickey)"));
    }
}

#[test]
fn keys_added_while_the_agent_lives_may_log_in_at_once() {
    let instance = Instance::start_with(|config| config.authorized_keys.clear());
    assert_eq!(instance.exec("true").status.code(), Some(255));
    let mut config = kohakuriver_agent::AgentConfig::read(instance.dir.path()).unwrap();
    config.authorized_keys = vec![std::fs::read_to_string(instance.path("id.pub")).unwrap()];
    support::write_config(instance.dir.path(), &config);
    assert_eq!(instance.exec("true").status.code(), Some(0));
}

#[test]
fn many_offered_keys_do_not_use_up_the_attempts() {
    let instance = Instance::start();
    let wrong = instance.path("id_wrong");
    let mut options = Vec::new();
    let copies: Vec<String> = (0..12)
        .map(|n| {
            let copy = instance.path(&format!("wrong{n}"));
            let made = std::process::Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(&copy)
                .status();
            assert!(made.unwrap().success());
            copy.display().to_string()
        })
        .collect();
    for copy in &copies {
        options.extend(["-i", copy]);
    }
    let right = instance.path("id").display().to_string();
    options.extend(["-i", &right]);
    let output = instance.ssh_as("root", "id_wrong", &options, "true").output().unwrap();
    assert!(wrong.exists() && output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn what_is_not_offered_is_refused_and_the_session_goes_on() {
    let instance = Instance::start();
    let mut ssh = instance.ssh(&["-X"], "echo works ${DISPLAY-none}");
    let output = ssh.env("DISPLAY", ":77").output().unwrap();
    assert_eq!(text(&output.stdout), "works none\n");
    let output = instance.ssh(&["-s"], "nosuchsubsystem").output().unwrap();
    assert!(!output.status.success());
}

#[test]
fn an_environment_is_taken_up_to_its_bounds_and_the_session_lives_beyond_them() {
    let instance = Instance::start();
    let mut ssh = instance.ssh(&["-o", "SendEnv=KR_*"], "env | grep -c ^KR_; echo ${#KR_LONG}");
    ssh.env("KR_LONG", "x".repeat(30_000)).env("KR_HUGE", "x".repeat(100_000));
    ssh.envs((0..200).map(|n| (format!("KR_{n}"), "y")));
    let output = ssh.output().unwrap();
    assert_eq!(text(&output.stdout), "201\n30000\n");
}

#[test]
fn a_terminal_may_have_any_size() {
    let instance = Instance::start();
    for (rows, columns) in [(0, 0), (65535, 65535), (1, 1)] {
        let size = nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(Some(&size), None).unwrap();
        let output = instance.ssh(&["-tt"], "stty size").stdin(Stdio::from(pty.slave)).output();
        assert_eq!(text(&output.unwrap().stdout), format!("{rows} {columns}\r\n"));
    }
}

#[test]
fn a_script_piped_into_a_terminal_runs_and_its_end_does_not_hang_up() {
    let instance = Instance::start();
    let mut child = instance
        .ssh(&["-tt"], "stty -echo; read a; sleep 0.7; echo got $a")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"line\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(text(&output.stdout).contains("got line"), "{}", text(&output.stdout));
    assert!(output.status.success());
}

#[test]
fn a_client_that_stops_reading_ends_the_program() {
    let instance = Instance::start();
    let mut ssh = instance.ssh(&[], "echo $$; exec yes");
    let mut child = ssh.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut pid = String::new();
    let mut byte = [0];
    while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        pid.push(char::from(byte[0]));
    }
    drop(stdout);
    wait_until("the program is gone", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    let _ = child.kill();
    child.wait().unwrap();
}

#[test]
fn the_fast_cipher_is_chosen_although_the_client_prefers_another() {
    let instance = Instance::start();
    let output = instance.ssh(&["-v", "-o", "LogLevel=DEBUG1"], "true").output().unwrap();
    assert!(
        text(&output.stderr).contains("cipher: aes128-gcm@openssh.com"),
        "{}",
        text(&output.stderr)
    );
}
