//! `kohakuriver vps create`

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::support::{Answer, Host, Sandbox, error_body, task};
use crate::{ID, KEY, stdout_json};

/// A host where a VPS takes three polls until its status is `end`.
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
    // Plain ssh does not know this key.
    let line = format!("ssh -i {} -J tester@127.0.0.1:8002 root@web", private.display());
    assert!(ran.stdout.contains(&line), "{}", ran.stdout);
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
    assert!(ran.stdout.contains("or    ssh -J tester@127.0.0.1:8002 root@web"), "{}", ran.stdout);
}

#[test]
fn failed_create_leaves_no_files() {
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
fn key_is_retained_only_where_host_may_have_received_it() {
    let broken = Host::start(|_| Answer::nothing());
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&broken, &["vps", "create", "--ssh"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{}", ran.stderr);
    let folder = sandbox.home().join(".ssh");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    let line = ran.stderr.lines().find(|line| line.starts_with("new private key: ")).unwrap();
    let path = line.trim_start_matches("new private key: ");
    assert!(fs::read_to_string(path).unwrap().contains("PRIVATE KEY"));
    assert!(ran.stderr.contains("kohakuriver vps list -a"), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("kohakuriver ssh NAME -i {path}")), "{}", ran.stderr);

    let sandbox = Sandbox::new();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ran = sandbox.run_at(nobody, &["vps", "create", "--ssh"]);
    assert_eq!(ran.code, 3);
    assert!(!ran.stderr.contains("new private key"), "{}", ran.stderr);
    assert_eq!(fs::read_dir(sandbox.home().join(".ssh")).unwrap().count(), 0);
}

#[test]
fn create_sends_gpus_labels_snapshots_and_memory() {
    let sandbox = Sandbox::new();
    let sent = |args: &[&str]| {
        let host = creating("running");
        let ran = sandbox.run(&host, &[&["vps", "create"], args].concat());
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
        host.body("POST /api/vps/create")
    };
    let body = sent(&["--gpus", "2", "--node-label", "disk=ssd", "--node-label", "a=b=c"]);
    assert_eq!(body["gpu_count"], 2);
    assert_eq!(body["node_labels"], json!({"disk": "ssd", "a": "b=c"}));
    assert_eq!((&body["from_vps"], &body["on_oom"]), (&Value::Null, &Value::Null));
    let body = sent(&["--from-snapshot", "web@clean", "--snapshot-on-stop", "--on-oom", "keep"]);
    assert_eq!((&body["from_vps"], &body["from_snapshot"]), (&json!("web"), &json!("clean")));
    assert_eq!((&body["snapshot_on_stop"], &body["on_oom"]), (&json!(true), &json!("keep")));
    assert_eq!(body["registry_image"], Value::Null);
    let body = sent(&["--from-snapshot", "7398", "--keep-snapshots", "0", "-t", "node1:1::3"]);
    assert_eq!((&body["from_vps"], &body["from_snapshot"]), (&json!("7398"), &Value::Null));
    assert_eq!((&body["keep_snapshots"], &body["required_gpus"]), (&json!(0), &json!([3])));
    assert_eq!(body["target_numa_node_id"], 1);
}
