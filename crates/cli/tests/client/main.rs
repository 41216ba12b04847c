//! The client commands as a person runs them, against a host that answers canned JSON.

#![expect(clippy::unwrap_used, reason = "what cannot be set up has failed")]

mod ssh;
mod support;

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use support::{Answer, Host, Sandbox, error_body, task};

const ID: &str = "7398213345412345856";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

fn stdout_json(output: &support::Ran) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", output.stdout))
}

#[test]
fn a_list_is_data_on_stdout_and_nothing_else() {
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
        &["vps", "create", "--backend", "qemu"],
        &["vps", "create", "--no-ssh-key", "--gen-ssh-key"],
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
fn an_answer_of_something_else_is_not_taken_for_ours() {
    let host = Host::start(|_| Answer { status: 200, body: "<html>hello</html>".to_owned() });
    let ran = Sandbox::new().run(&host, &["vps", "list"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("not a KohakuRiver host"), "{}", ran.stderr);
}

/// A host where a VPS takes three looks until it is `end`.
fn creating(end: &'static str) -> Host {
    let looks = AtomicUsize::new(0);
    Host::start(move |request| {
        let look = u64::try_from(looks.load(Ordering::SeqCst)).unwrap() + 1;
        let mut state = task(ID, "web", "assigning", look);
        state["progress"] = json!("pulling debian:12");
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/api/vps/create") => Answer::ok(json!({
                "message": "created", "task_id": ID, "vps_backend": "docker",
                "ssh_key_mode": "upload", "ssh_port": 1, "status": "assigning",
                "assigned_node": {"hostname": "node1", "url": null}, "task": state,
            })),
            ("GET", _) => {
                if looks.fetch_add(1, Ordering::SeqCst) >= 2 {
                    state["status"] = json!(end);
                    state["progress"] = Value::Null;
                }
                if end == "failed" {
                    state["error_message"] = json!("no such image: debian:12x");
                    state["error_hint"] = json!("check the image's name");
                }
                Answer::ok(state)
            }
            _ => Answer::ok(json!({"message": "ok", "task_id": ID})),
        }
    })
}

#[test]
fn create_waits_shows_progress_and_keeps_its_key() {
    let host = creating("running");
    let sandbox = Sandbox::new();
    let ran = sandbox.run(
        &host,
        &["vps", "create", "--name", "web", "--ssh", "-m", "2G", "-t", "node1::0,1", "-e", "A=b=c"],
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("pulling debian:12").count(), 1, "{}", ran.stderr);
    assert!(ran.stdout.contains("kohakuriver ssh web"), "{}", ran.stdout);
    assert!(ran.stdout.contains(":8002 root@web"), "{}", ran.stdout);
    assert!(host.saw("POST /api/vps/create?wait=false"));
    let sent = host.body("POST /api/vps/create");
    assert_eq!(sent["ssh_key_mode"], "upload");
    assert_eq!(sent["required_gpus"], json!([0, 1]));
    assert_eq!(sent["required_memory_bytes"], json!(2_u64 << 30));
    assert_eq!(sent["env_vars"], json!({"A": "b=c"}));

    let private = sandbox.home().join(format!(".ssh/id-kohakuriver-{ID}"));
    assert_eq!(private.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let public = fs::read_to_string(private.with_extension("pub")).unwrap();
    assert_eq!(public.trim(), sent["ssh_public_key"].as_str().unwrap());
    assert!(ran.stderr.contains(private.to_str().unwrap()), "{}", ran.stderr);
    assert!(!sent.to_string().contains("PRIVATE KEY"));

    let host = creating("running");
    let ran = sandbox.run(&host, &["vps", "create", "--json"]);
    assert_eq!(stdout_json(&ran)["status"], "running");
    assert_eq!(host.body("POST /api/vps/create")["ssh_key_mode"], "disabled");
}

#[test]
fn ssh_uploads_the_keys_people_have() {
    let host = creating("running");
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.home().join(".ssh")).unwrap();
    fs::write(sandbox.home().join(".ssh/id_ed25519.pub"), format!("{KEY} a@b\n")).unwrap();
    let ran = sandbox.run(&host, &["vps", "create", "--ssh", "--detach"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(host.body("POST /api/vps/create")["ssh_public_key"], format!("{KEY} a@b"));
    assert_eq!(fs::read_dir(sandbox.home().join(".ssh")).unwrap().count(), 1);
}

#[test]
fn a_create_that_fails_leaves_nothing_behind() {
    let host = creating("failed");
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&host, &["vps", "create", "--gen-ssh-key", "--json"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("no such image") && ran.stderr.contains("check the image's name"));
    assert!(host.saw(&format!("DELETE /api/vps/{ID}?force=true")));
    assert_eq!(fs::read_dir(sandbox.home().join(".ssh")).unwrap().count(), 0);

    let refused = Host::start(|_| Answer {
        status: 409,
        body: error_body("the name web is taken").to_string(),
    });
    let ran = sandbox.run(&refused, &["vps", "create", "--gen-ssh-key", "--key-out-file", "k"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("the name web is taken"), "{}", ran.stderr);
    assert!(!sandbox.home().join("k").exists() && !sandbox.home().join("k.pub").exists());
}

#[test]
fn ctrl_c_while_creating_keeps_the_vps_and_its_key() {
    let host = creating("assigning");
    let sandbox = Sandbox::new();
    let mut child = sandbox
        .command(host.port, &["vps", "create", "--gen-ssh-key"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("pulling") {
        let mut byte = [0];
        assert_eq!(stderr.read(&mut byte).unwrap(), 1);
        seen.push(byte[0]);
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(rest.contains("still being created"), "{rest}");
    assert!(rest.contains(&format!("kohakuriver vps status {ID}")), "{rest}");
    assert!(!host.saw("DELETE"));
    assert!(sandbox.home().join(format!(".ssh/id-kohakuriver-{ID}")).exists());
}

#[test]
fn stop_acts_on_all_and_reports_the_one_that_fails() {
    let asked = AtomicUsize::new(0);
    let host = Host::start(move |request| match request.path.as_str() {
        "/api/status/absent" => Answer::not_found(),
        "/api/status/web" => Answer::ok(task(ID, "web", "running", 1)),
        path if path == format!("/api/vps/stop/{ID}") => {
            Answer::ok(json!({"message": "stopping", "task_id": ID}))
        }
        _ => {
            let mut state = task(ID, "web", "running", 2);
            state["transition"] = json!("stopping");
            if asked.fetch_add(1, Ordering::SeqCst) > 0 {
                state = task(ID, "web", "stopped", 3);
            }
            Answer::ok(state)
        }
    });
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&host, &["vps", "stop", "absent", "web"]);
    assert_eq!(ran.code, 1);
    assert_eq!(ran.stdout, "VPS web is stopped\n");
    assert!(ran.stderr.contains("error: ") && ran.stderr.contains("stopping web"));
    let ran = sandbox.run(&host, &["vps", "stop", "web", "--json"]);
    assert_eq!((ran.code, stdout_json(&ran)["status"].clone()), (0, json!("stopped")));
}

#[test]
fn restart_of_what_fails_says_why() {
    let host = Host::start(move |request| match request.method.as_str() {
        "POST" => Answer::ok(json!({"message": "restarting", "task_id": ID})),
        _ => {
            let mut state = task(ID, "web", "failed", 2);
            state["error_message"] = json!("the disk is gone");
            Answer::ok(state)
        }
    });
    let ran = Sandbox::new().run(&host, &["vps", "restart", "web"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("the disk is gone"), "{}", ran.stderr);
}

#[test]
fn delete_waits_until_it_is_gone() {
    let asked = AtomicUsize::new(0);
    let host = Host::start(move |request| match request.method.as_str() {
        "DELETE" => Answer::ok(json!({"message": "deleting", "task_id": ID})),
        _ if asked.fetch_add(1, Ordering::SeqCst) > 1 => Answer::not_found(),
        _ => {
            let mut state = task(ID, "web", "stopped", 2);
            state["transition"] = json!("deleting");
            Answer::ok(state)
        }
    });
    let ran = Sandbox::new().run(&host, &["vps", "delete", "web", "--yes"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "VPS web is deleted\n"), "{}", ran.stderr);
    assert!(host.saw(&format!("DELETE /api/vps/{ID}?force=false")));
}

#[test]
fn a_host_that_goes_away_ends_everything_with_3() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ran = Sandbox::new().run_at(nobody, &["vps", "stop", "web", "db"]);
    assert_eq!(ran.code, 3);
    assert_eq!(ran.stderr.matches("error: ").count(), 1, "{}", ran.stderr);
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
    assert_eq!(host.body("POST /api/nodes/tokens")["ttl_seconds"], 1800);
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
