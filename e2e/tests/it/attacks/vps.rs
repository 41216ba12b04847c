//! What becomes of a VPS's own protection while it lives.

use std::process::Command;

use kohakuriver_e2e::{Guarded, run};
use serde_json::json;

use super::network::tunnel;

#[test]
fn s7_a_restart_leaves_a_vps_as_closed_as_it_was() {
    let cluster = Guarded::start();
    let alice = cluster.person("alice", "user");
    let (key, other) = (cluster.site.make_key("key"), cluster.site.make_key("other"));
    let read = |key: &std::path::Path| std::fs::read_to_string(key.with_extension("pub")).unwrap();
    cluster.post(Some(&alice), "/api/auth/keys", &json!({"key": read(&key)})).ok();
    let keyed = json!({"ssh_key_mode": "upload", "ssh_public_key": read(&key)});
    let keyed = cluster.vps(&alice, "keyed", &keyed);
    let closed = cluster.vps(&alice, "closed", &json!({}));
    // The gateway knows who comes; what the VPS itself asks for is what is tried.
    cluster.site.plain_ssh("ssh", &key);
    let gateway = format!(
        "ProxyCommand=ssh -F {} -W %h:%p -p {} you@127.0.0.1",
        cluster.site.path().join("ssh_config").display(),
        cluster.site.ssh_port()
    );
    let ssh = |user: &str, options: &[&str]| {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        ssh.args([
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            &gateway,
        ]);
        run(ssh.args(options).args([&format!("{user}@{keyed}"), "id", "-u"]))
    };
    let no_key = ["-o", "PreferredAuthentications=none,password,keyboard-interactive"];
    for round in 0..3 {
        assert_eq!(ssh("root", &["-i", key.to_str().unwrap()]).ok(), "0\n", "round {round}");
        for user in ["root", "nobody"] {
            let another = ssh(user, &["-i", other.to_str().unwrap()]);
            another.fails(255, &["Permission denied"]);
            ssh(user, &no_key).fails(255, &["Permission denied"]);
        }
        let line = format!("REQUEST_TUNNEL {closed} {}", alice.token);
        let answer = tunnel(&cluster, &line);
        assert!(answer.starts_with("ERROR ") && answer.contains("without --ssh"), "{answer}");
        // Nothing of either is published on the node.
        for id in [&keyed, &closed] {
            let name = format!("kohakuriver-vps-{id}");
            let ports = [
                "inspect",
                "--format",
                "{{json .HostConfig.PortBindings}}{{.HostConfig.PublishAllPorts}}",
                &name,
            ];
            let ports = run(Command::new("docker").args(ports)).ok();
            assert!(["{}false", "nullfalse"].contains(&ports.trim()), "{ports}");
        }
        for id in [&keyed, &closed] {
            match round {
                0 => cluster.kr(&alice, &["vps", "restart", id]).ok(),
                _ => {
                    cluster.kr(&alice, &["vps", "stop", id]).ok();
                    cluster.kr(&alice, &["vps", "restart", id]).ok()
                }
            };
        }
    }
}
