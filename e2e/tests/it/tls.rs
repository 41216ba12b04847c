//! A host that serves people by https, from the first refusal to every way in.

use std::fs;
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, DEBIAN, Server, Site, Terminal, run, run_with_input, wait_until};

fn join(site: &Site) -> Server {
    let token = site.json(&["node", "token", "create"])["token"].clone();
    let mut runner = site.runner("n1", &["--join", token.as_str().unwrap()]);
    runner.wait_for_line("connected to the host");
    let online = || site.json(&["node", "list"])[0]["status"] == "online";
    wait_until("the node is online", Duration::from_secs(5), online);
    runner
}

#[test]
fn all_ways_in_lead_through_https_once_the_hosts_ca_is_known() {
    let mut site = Site::new();
    let mut host = site.https_host();
    let line = host.wait_for_line("fingerprint=");
    let rest = line.split("fingerprint=").nth(1).unwrap().trim_matches('"');
    let fingerprint: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    assert_eq!(fingerprint.len(), 64, "{line}");
    let url = format!("https://127.0.0.1:{}", site.port());
    let log_in = format!("kohakuriver auth login {url}");
    site.kr(&["vps", "list"]).fails(3, &[&fingerprint, &log_in]);
    site.trust_host();
    site.kr(&["vps", "list"]).ok();
    let plain = url.replace("https", "http");
    site.kr(&["--host", &plain, "vps", "list"]).fails(2, &["https only", &url]);

    let _runner = join(&site);
    let create = ["vps", "create", "--name", "web", "--ssh", "--image", DEBIAN];
    site.kr(&create).ok();
    let echo = run_with_input(
        site.command().args(["terminal", "exec", "web", "--", "sh", "-c", "cat; exit 3"]),
        &vec![b'x'; 3_000_000],
    );
    assert_eq!((echo.code, echo.stdout.len()), (3, 3_000_000));

    let counted = run_with_input(
        site.command().args(["ssh", "web", "--", "cat; exit 4"]),
        &vec![b'x'; 3_000_000],
    );
    assert_eq!((counted.code, counted.stdout.len()), (4, 3_000_000), "{}", counted.stderr);
    let config = site.path().join("kr_ssh_config");
    site.kr(&["ssh", "config", "--output", config.to_str().unwrap()]).ok();
    assert!(!fs::read_to_string(&config).unwrap().contains("ProxyUseFdpass"));
    let there = site.path().join("there");
    fs::write(&there, vec![7; 3_000_000]).unwrap();
    let mut scp = std::process::Command::new("scp");
    scp.env("HOME", site.home()).arg("-F").arg(&config).args(["-o", "BatchMode=yes"]);
    run(scp.arg(&there).arg("web:/root/copy")).ok();
    let copied = site.path().join("copied");
    site.kr(&["vps", "cp", "web:/root/copy", copied.to_str().unwrap()]).ok();
    assert!(fs::read(&there).unwrap() == fs::read(&copied).unwrap());

    let mut command = site.command();
    let mut terminal = Terminal::start(command.args(["connect", "web"]));
    terminal.type_in("echo h''ello; exit 5\r");
    terminal.wait_for("hello");
    assert_eq!(terminal.wait(), 5);
}

#[test]
fn what_a_host_and_an_admin_say_to_type_makes_an_account_without_a_question() {
    let mut site = Site::new();
    let mut host = site.team_host();
    let printed = host.wait_for_line("auth register");
    let register = |printed: &str, name: &str| {
        let (_, words) = printed.split_once("kohakuriver ").unwrap();
        let words = words.split("   ").next().unwrap().split_whitespace();
        let mut command = site.command();
        // Another person's machine, which knows no host.
        let home = site.path().join(name);
        fs::create_dir(&home).unwrap();
        command.env("HOME", &home).env_remove("KOHAKURIVER_CONFIG");
        command.args(words).args(["--username", name, "--password-stdin"]);
        run_with_input(&mut command, b"three old bridges").ok();
        home
    };
    let home = register(&printed, "root");
    let mut invite = site.command();
    invite.env("HOME", &home).env_remove("KOHAKURIVER_CONFIG").args(["auth", "invite"]);
    let invited = run(&mut invite);
    let printed = invited.stderr.lines().find(|line| line.contains("auth register"));
    register(printed.expect("what to type"), "ann");
}

#[test]
fn a_terminal_comes_back_by_https_when_the_host_was_restarted() {
    let mut site = Site::new();
    let server = site.https_up();
    site.trust_host();
    site.kr(&["vps", "create", "--name", "web", "--image", BUSYBOX]).ok();
    let mut command = site.command();
    let mut terminal = Terminal::start(command.args(["connect", "web"]));
    terminal.type_in("x=before; echo re''ady\r");
    terminal.wait_for("ready");
    server.kill();
    // Another certificate of the same CA: nobody is asked anything.
    let _server = site.https_up();
    terminal.type_in("echo $x-af''ter; exit 6\r");
    terminal.wait_for("before-after");
    assert_eq!(terminal.wait(), 6);
}

#[test]
fn ssh_with_a_token_goes_through_the_api_and_settings_from_before_say_so() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]).ok();
    let before = site.path().join("before");
    site.kr(&["ssh", "config", "--output", before.to_str().unwrap()]).ok();
    let with_token = |mut command: std::process::Command| {
        command.env("KOHAKURIVER_TOKEN", "not-asked-for");
        // Nothing answers at the gateway's port any more.
        command.env("KOHAKURIVER_SSH_PROXY_PORT", "1");
        command
    };
    let mut ssh = with_token(site.command());
    let output = run_with_input(ssh.args(["ssh", "web", "--", "cat; exit 3"]), &[b'x'; 100_000]);
    assert_eq!((output.code, output.stdout.len()), (3, 100_000), "{}", output.stderr);
    let mut ssh = with_token(site.command());
    let config = run(ssh.args(["ssh", "config"])).ok();
    assert!(config.contains("ssh-proxy --id") && !config.contains("ProxyUseFdpass"), "{config}");
    let mut ssh = with_token(std::process::Command::new("ssh"));
    ssh.env("HOME", site.home()).arg("-F").arg(&before).args([
        "-o",
        "BatchMode=yes",
        "web",
        "true",
    ]);
    run(&mut ssh).fails(255, &["before you logged in", "kohakuriver ssh config"]);
}
