//! Getting in without SSH: connect, terminal exec, terminal attach.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, SCRATCH, Site, Terminal, run, run_with_input, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn terminal(site: &Site, arguments: &[&str]) -> Terminal {
    let mut command = site.command();
    command.args(arguments);
    Terminal::start(&command)
}

#[test]
fn connect_is_a_whole_terminal_and_ends_with_the_shells_code() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--image", BUSYBOX]).ok();
    let mut term = terminal(&site, &["connect", "web"]);
    term.type_in("stty size; echo $TERM\r");
    term.wait_for("24 80");
    term.wait_for("xterm-256color");
    term.resize(41, 133);
    term.type_in("sleep 0.2; stty size; printf '\\303\\251\\n'; exit 9\r");
    term.wait_for("41 133");
    term.wait_for("é");
    assert_eq!(term.wait(), 9);
    site.kr(&["connect", "web"]).fails(2, &["terminal exec"]);
    site.kr(&["connect", "nobody", "--list"]).fails(1, &["nobody", "vps list"]);
}

#[test]
fn a_session_goes_on_when_everything_between_it_and_the_person_is_killed() {
    let mut site = Site::new();
    let server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--image", BUSYBOX]).ok();
    let mut term = terminal(&site, &["connect", "web"]);
    term.type_in("x=before; echo re''ady\r");
    term.wait_for("ready");
    server.kill();
    let server = site.up();
    term.type_in("echo $x-af''ter\r");
    term.wait_for("before-after");
    // Twice: the way back is not a way out.
    assert_eq!(server.interrupt(), 0);
    let _server = site.up();
    term.type_in("echo ag''ain; exit 4\r");
    term.wait_for("again");
    assert_eq!(term.wait(), 4);
}

#[test]
fn a_detached_session_waits_and_is_shared_listed_watched_and_ended() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--image", BUSYBOX]).ok();
    let mut first = terminal(&site, &["connect", "web", "--session", "work"]);
    first.type_in("echo from''-first\r");
    first.wait_for("from-first");
    first.type_in("\r~d");
    assert_eq!(first.wait(), 0);
    first.wait_for("--session work");

    let mut again = terminal(&site, &["connect", "web", "--session", "work"]);
    again.wait_for("from-first");
    let mut watcher = terminal(&site, &["connect", "web", "--session", "work", "--read-only"]);
    watcher.wait_for("from-first");
    watcher.type_in("echo from''-watcher\r");
    again.type_in("echo from''-again\r");
    watcher.wait_for("from-again");
    assert!(!again.shown().contains("from-watcher"));
    let sessions = site.json(&["connect", "web", "--list"]);
    assert_eq!(
        (sessions[0]["name"].as_str(), sessions[0]["clients"].as_u64()),
        (Some("work"), Some(2))
    );

    site.kr(&["connect", "web", "--end", "work"]).ok();
    again.wait();
    watcher.wait();
    assert_eq!(site.json(&["connect", "web", "--list"]), serde_json::json!([]));
    site.kr(&["connect", "web", "--end", "work"]).fails(1, &["work"]);
}

#[test]
fn exec_passes_arguments_streams_codes_and_signals_exactly() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--image", BUSYBOX]).ok();
    let exec = |words: &[&str]| site.kr(&[&["terminal", "exec", "web", "--"], words].concat());
    let echo = exec(&["printf", "<%s>", "a  b", "", "$(id)", "-x"]);
    assert_eq!(echo.ok(), "<a  b><><$(id)><-x>");
    let both = exec(&["sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!((both.code, both.stdout.as_str(), both.stderr.as_str()), (42, "out\n", "err\n"));
    exec(&["no-such-program"]).fails(127, &["no-such-program"]);
    exec(&["/etc"]).fails(126, &["/etc"]);
    exec(&["sh", "-c", "kill -9 $$"]).fails(137, &[]);
    let input: Vec<u8> = (0..5_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let counted =
        run_with_input(site.command().args(["terminal", "exec", "web", "--", "wc", "-c"]), &input);
    assert_eq!(counted.ok().trim(), "5000000");
    // Options in front of the command, and a user of the image.
    let there = site.kr(&[
        "terminal",
        "exec",
        "web",
        "-w",
        "/tmp",
        "-e",
        "A=1",
        "--",
        "sh",
        "-c",
        "pwd; echo $A",
    ]);
    assert_eq!(there.ok(), "/tmp\n1\n");

    let script = "trap 'echo caught; exit 3' TERM; echo up; while :; do sleep 0.05; done";
    let mut command = site.command();
    command.args(["terminal", "exec", "web", "--", "sh", "-c", script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!((&up, ended.status.code()), (b"up\n", Some(3)));
    assert_eq!(ended.stdout, b"caught\n");
}

#[test]
fn exec_needs_no_shell_in_the_image_and_works_while_another_output_is_stuck() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "bare", "--image", SCRATCH]).ok();
    site.kr(&["vps", "create", "--name", "web", "--image", BUSYBOX]).ok();
    assert!(site.kr(&["terminal", "exec", "bare", "--", "/hello"]).ok().contains("hello"));
    let mut stuck = site.command();
    stuck.args(["terminal", "exec", "web", "--", "cat", "/dev/zero"]).stdout(Stdio::piped());
    let mut stuck = stuck.spawn().unwrap();
    stuck.stdout.as_mut().unwrap().read_exact(&mut [0; 1000]).unwrap();
    site.kr(&["terminal", "exec", "web", "--", "true"]).ok();
    stuck.kill().unwrap();
    stuck.wait().unwrap();
    wait_until("the stuck program was hung up", Duration::from_secs(10), || {
        let ps = site.kr(&["terminal", "exec", "web", "--", "ps"]).ok();
        !ps.contains("cat /dev/zero")
    });
}

#[test]
fn attach_works_when_the_agent_does_not() {
    let mut site = Site::new();
    let _server = site.up();
    let task = site.json(&["vps", "create", "--name", "web", "--image", BUSYBOX]);
    let container = format!("kohakuriver-vps-{}", task["task_id"].as_str().unwrap());
    let inspect = ["inspect", "--format", "{{.State.Pid}}", &container];
    let pid = run(Command::new("docker").args(inspect)).ok().trim().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    let mut term = terminal(&site, &["terminal", "attach", "web"]);
    term.type_in("stty size; echo in''side; exit 6\r");
    term.wait_for("24 80");
    term.wait_for("inside");
    assert_eq!(term.wait(), 6);
    let piped =
        run_with_input(site.command().args(["terminal", "attach", "web"]), b"echo piped; exit 8\n");
    assert_eq!((piped.code, piped.stdout.as_str()), (8, "piped\n"));
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    site.kr(&["terminal", "exec", "web", "--", "true"]).ok();
}

#[test]
fn a_vps_that_is_not_running_says_so_at_every_door() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--image", BUSYBOX]).ok();
    site.kr(&["vps", "pause", "web"]).ok();
    site.kr(&["terminal", "exec", "web", "--", "true"]).fails(1, &["paused", "vps resume web"]);
    site.kr(&["vps", "resume", "web"]).ok();
    let mut cut = site.command();
    cut.args(["terminal", "exec", "web", "--", "sh", "-c", "echo in; exec sleep 600"]);
    cut.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut cut = cut.spawn().unwrap();
    cut.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    site.kr(&["vps", "stop", "web"]).ok();
    let code = cut.wait().unwrap().code();
    assert!(matches!(code, Some(3 | 143)), "told that it ended: {code:?}");
    for door in [
        &["terminal", "exec", "web", "--", "true"][..],
        &["terminal", "attach", "web"],
        &["forward", "web", "80:0"],
    ] {
        site.kr(door).fails(1, &["stopped", "vps restart web"]);
    }
}
