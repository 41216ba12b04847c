//! The client commands as a user runs them, against a host with canned JSON responses.

#![expect(clippy::unwrap_used, reason = "what cannot be set up has failed")]

mod acts;
mod create;
mod events;
mod hostile;
mod machines;
mod nodes;
mod output;
mod snapshots;
mod ssh;
mod support;

use std::fs;
use std::net::TcpListener;

use serde_json::{Value, json};
use support::{Answer, Host, Sandbox, task};

const ID: &str = "7398213345412345856";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

fn stdout_json(output: &support::Ran) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", output.stdout))
}

#[test]
fn list_prints_only_data_to_stdout() {
    let host = Host::start(|request| match request.path.as_str() {
        "/api/vps/status" => Answer::ok(json!([task(ID, "web", "running", 1)])),
        _ => Answer::not_found(),
    });
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&host, &["vps", "list"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("ID "), "{lines:?}");
    assert!(lines[1].contains(ID) && lines[1].contains("web") && lines[1].contains("8G"));

    for args in [["vps", "list", "--json"], ["--json", "vps", "list"]] {
        let ran = sandbox.run(&host, &args);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        assert_eq!(stdout_json(&ran)[0]["task_id"], ID);
    }
}

#[test]
fn an_empty_list_says_so_beside_the_data() {
    let host = Host::start(|_| Answer::ok(json!([])));
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&host, &["vps", "list"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""));
    assert!(ran.stderr.contains("hint: "), "{}", ran.stderr);
    assert_eq!(sandbox.run(&host, &["vps", "list", "--json"]).stdout, "[]\n");
    assert_eq!(sandbox.run(&host, &["node", "list"]).stdout, "");
}

#[test]
fn errors_have_their_exit_codes_and_a_hint() {
    let host = Host::start(|_| Answer::not_found());
    let sandbox = Sandbox::new();
    let missing = sandbox.run(&host, &["vps", "status", "web"]);
    assert_eq!((missing.code, missing.stdout.as_str()), (1, ""));
    assert!(missing.stderr.starts_with("error: "), "{}", missing.stderr);
    assert!(missing.stderr.contains("\nhint: "), "{}", missing.stderr);

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let off = sandbox.command(nobody, &["vps", "list"]).output().unwrap();
    assert_eq!(off.status.code(), Some(3));
    let stderr = String::from_utf8(off.stderr).unwrap();
    assert!(stderr.contains("connection refused") && stderr.contains("hint: "), "{stderr}");

    for args in [
        &["vps", "create", "-m", "8X"][..],
        &["vps", "create", "-m", "1K"],
        &["vps", "create", "-t", "a:b:c"],
        &["vps", "create", "--image", "-v"],
        &["vps", "create", "--name", "Web"],
        &["vps", "create", "--env", "A"],
        &["vps", "create", "--backend", "podman"],
        &["vps", "create", "--no-ssh-key", "--gen-ssh-key"],
        &["vps", "create", "-t", "node1::0", "--gpus", "2"],
        &["vps", "create", "--image", "debian:12", "--from-snapshot", "web"],
        &["vps", "create", "--from-snapshot", "web@../x"],
        &["vps", "create", "--node-label", "disk"],
        &["vps", "create", "--on-oom", "explode"],
        &["vps", "update", "web"],
        &["vps", "update", "web", "-m", "1K"],
        &["vps", "restart", "web", "db", "--from-snapshot", "latest", "--yes"],
        &["vps", "restart", "web", "--from-snapshot", "../x"],
        &["vps", "snapshot", "delete", "web"],
        &["vps", "snapshot", "delete", "web", "clean", "--all"],
        &["vps", "snapshot", "create", "web", "--name", "latest"],
        &["vps", "events", "web", "--limit", "0"],
        &["node", "label", "node1", "disk"],
        &["node", "label", "node1", "disk=ssd", "disk-"],
        &["vps", "create", "--public-key-file", "absent.pub"],
        &["vps", "status", "../nodes"],
        &["vps", "delete", "web"],
        &["vps"],
    ] {
        let host = Host::start(|_| Answer::ok(task(ID, "web", "running", 1)));
        let ran = sandbox.run(&host, args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(!host.saw("POST /api/vps/create"), "{args:?}");
        assert!(!host.saw(&format!("DELETE /api/vps/{ID}")), "{args:?}");
    }
}

#[test]
fn response_of_another_server_is_refused() {
    let host = Host::start(|_| Answer { status: 200, body: "<html>hello</html>".to_owned() });
    let ran = Sandbox::new().run(&host, &["vps", "list"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("not a KohakuRiver host"), "{}", ran.stderr);
}

#[test]
fn unreachable_host_ends_commands_with_3() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ran = Sandbox::new().run_at(nobody, &["vps", "stop", "web", "db"]);
    assert_eq!(ran.code, 3);
    assert_eq!(ran.stderr.matches("error: ").count(), 1, "{}", ran.stderr);
}

#[test]
fn request_names_host_address_and_caller() {
    let host = Host::start(|_| Answer::ok(json!([])));
    let sandbox = Sandbox::new();
    let ran = sandbox
        .command(host.port, &["vps", "list", "-H", "localhost"])
        .env("USER", "j\u{f6}rg")
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
    let asked = host.find_all("GET /api/vps/status").remove(0);
    assert_eq!(asked.header("host"), format!("127.0.0.1:{}", host.port));
    let who = asked.header("x-kohakuriver-user");
    assert!(who.starts_with("jrg@") && who.len() > 4, "{who}");
}

#[test]
fn root_help_lists_every_exit_code() {
    let sandbox = Sandbox::new();
    let help = sandbox.run_at(1, &["--help"]).stdout;
    for code in ["1 the request", "2 wrong", "3 host", "4 this machine", "5 the host", "127", "130"]
    {
        assert!(help.contains(code), "{code}: {help}");
    }
    let help = sandbox.run_at(1, &["vps", "create", "--help"]).stdout;
    assert!(help.contains("Virtual machines (--backend qemu):"), "{help}");
}

#[test]
fn a_join_token_is_alone_on_stdout() {
    let host = Host::start(|_| {
        Answer::ok(
            json!({"token": "kr1.abc", "expires_at": "2030-01-01T00:00:00Z", "address": "h:8001"}),
        )
    });
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&host, &["node", "token", "create", "--ttl", "30m"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "kr1.abc\n"));
    assert!(ran.stderr.contains("kohakuriver runner --join kr1.abc"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("only this computer"), "{}", ran.stderr);
    assert_eq!(host.body("POST /api/nodes/tokens")["ttl_seconds"], 1800);
}

#[test]
fn join_token_for_loopback_only_is_reported() {
    let host = Host::start(|_| {
        Answer::ok(json!({
            "token": "kr1.abc", "expires_at": "2030-01-01T00:00:00Z", "address": "127.0.0.1:8001",
        }))
    });
    let ran = Sandbox::new().run(&host, &["node", "token", "create"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "kr1.abc\n"));
    assert!(
        ran.stderr.contains("only this computer can connect to 127.0.0.1:8001"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("hint: ") && ran.stderr.contains("--advertise"), "{}", ran.stderr);
}

#[test]
fn settings_name_their_source() {
    let sandbox = Sandbox::new();
    let ran = sandbox.run_at(4711, &["config", "show", "--json"]);
    let shown = stdout_json(&ran);
    assert_eq!(shown["port"], json!({"value": 4711, "source": "KOHAKURIVER_PORT"}));
    assert_eq!(shown["ssh_proxy_port"]["source"], "default");
    let path = sandbox.run_at(1, &["config", "path"]).stdout;
    assert_eq!(
        path.trim(),
        sandbox.home().join(".config/kohakuriver/config.toml").to_str().unwrap()
    );
    fs::create_dir_all(sandbox.home().join(".config/kohakuriver")).unwrap();
    fs::write(path.trim(), "hots = \"x\"\n").unwrap();
    let ran = sandbox.run_at(1, &["config", "show"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("config.toml:1: "), "{}", ran.stderr);
}

#[test]
fn tab_completes_names_from_the_host() {
    let host = Host::start(|_| Answer::ok(json!([task(ID, "web", "running", 1)])));
    let sandbox = Sandbox::new();
    let script = sandbox.run(&host, &["completion", "bash"]);
    assert!(script.stdout.contains("COMPLETE=\"bash\"") || script.stdout.contains("COMPLETE"));
    let ask = |words: &[&str], index: &str| {
        let output = sandbox
            .command(host.port, &[])
            .args(["--", "kohakuriver"])
            .args(words)
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", index)
            .env("_CLAP_IFS", "\n")
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(ask(&["vps", "status", ""], "3").lines().any(|line| line == "web"));
    assert!(ask(&["ssh", "w"], "2").lines().any(|line| line == "web"));
    assert!(ask(&["vps", ""], "2").lines().any(|line| line == "create"));
}
