//! The product's main path, with the real `ssh` and `scp`.

use std::fs;
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, Site, run, run_with_input, wait_until};

#[test]
fn a_vps_keeps_its_files_and_its_host_key_over_stop_and_restart_and_delete_leaves_nothing() {
    let mut site = Site::new();
    let server = site.up();
    let task = site.json(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]);
    let id = task["task_id"].as_str().unwrap().to_owned();
    assert_eq!((task["status"].as_str(), task["ssh_port"].as_u64()), (Some("running"), Some(9000)));
    assert_eq!(site.kr(&["ssh", "web", "--", "echo kept > /root/file; hostname"]).ok(), "web\n");
    let host_key = site.json(&["vps", "status", "web"])["ssh_host_key"].clone();
    assert!(host_key.as_str().unwrap().starts_with("ssh-ed25519 "));

    site.kr(&["vps", "stop", "web"]).ok();
    assert_eq!(site.status("web"), "stopped");
    assert_eq!(site.json(&["vps", "list"]), serde_json::json!([]));
    site.kr(&["ssh", "web", "--", "true"]).fails(1, &["stopped", "hint:", "restart"]);

    site.kr(&["vps", "restart", &id[..14]]).ok();
    assert_eq!(site.kr(&["ssh", &id, "--", "cat /root/file"]).ok(), "kept\n");
    assert_eq!(site.json(&["vps", "status", "web"])["ssh_host_key"], host_key);

    site.kr(&["vps", "delete", "web"]).fails(2, &["--yes"]);
    site.kr(&["vps", "stop", "web"]).ok();
    site.kr(&["vps", "delete", "web", "--yes"]).ok();
    assert_eq!(site.json(&["vps", "list", "--all"]), serde_json::json!([]));
    assert_eq!(site.containers(), [] as [String; 0]);
    let left = fs::read_dir(site.data_dir().join("runner/instances")).unwrap().count();
    assert_eq!(left, 0, "the instance's directory is gone too");
    assert_eq!(server.interrupt(), 0);
}

#[test]
fn stock_openssh_gets_in_through_the_jump_port_by_name_id_and_prefix() {
    let mut site = Site::new();
    let _server = site.up();
    let task = site.json(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]);
    let id = task["task_id"].as_str().unwrap();
    let key = site.key_of(id);
    for name in ["web", id, &id[..14]] {
        let output = run(site.plain_ssh("ssh", &key).arg(format!("root@{name}")).arg("exit 7"));
        assert_eq!(output.code, 7, "{name}: {output:?}");
    }
    let echo =
        run_with_input(site.plain_ssh("ssh", &key).args(["root@web", "cat; echo end >&2"]), b"in");
    assert_eq!((echo.stdout.as_str(), echo.stderr.as_str()), ("in", "end\n"));
    let tty = run(site.plain_ssh("ssh", &key).args(["-tt", "root@web", "tty"]));
    assert!(tty.stdout.starts_with("/dev/pts/"), "{tty:?}");
    let nobody = run(site.plain_ssh("ssh", &key).args(["root@nobody", "true"]));
    assert_eq!(nobody.code, 255, "{nobody:?}");
    let port = site.ssh_port().to_string();
    let shell = run(site.plain_ssh("ssh", &key).args(["-p", &port, "you@127.0.0.1"]));
    assert!(shell.code == 1 && shell.stderr.contains("ssh -J"), "{shell:?}");
}

#[test]
fn scp_copies_both_ways_into_an_image_that_has_no_ssh() {
    let mut site = Site::new();
    let _server = site.up();
    let task = site.json(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]);
    let key = site.key_of(task["task_id"].as_str().unwrap());
    let (there, back) = (site.path().join("there"), site.path().join("back"));
    let content: Vec<u8> = (0..3_000_000u32).flat_map(|n| (n % 251).to_le_bytes()).collect();
    fs::write(&there, &content).unwrap();
    run(site.plain_ssh("scp", &key).arg(&there).arg("root@web:/root/copy")).ok();
    run(site.plain_ssh("scp", &key).arg("root@web:/root/copy").arg(&back)).ok();
    assert!(fs::read(&back).unwrap() == content, "twelve megabytes came back changed");
}

#[test]
fn without_ssh_there_is_no_way_in_by_ssh() {
    let mut site = Site::new();
    let _server = site.up();
    let task = site.json(&["vps", "create", "--name", "plain", "--image", BUSYBOX]);
    assert_eq!(task["ssh_port"], 0);
    assert!(!site.home().join(".ssh").exists(), "no key was made");
    site.kr(&["ssh", "plain", "--", "true"]).fails(1, &["--ssh"]);
}

#[test]
fn another_key_does_not_open_it() {
    let mut site = Site::new();
    let _server = site.up();
    let task = site.json(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]);
    let right = site.key_of(task["task_id"].as_str().unwrap());
    let wrong = site.make_key("wrong");
    let refused = run(site.plain_ssh("ssh", &wrong).args(["root@web", "true"]));
    assert!(refused.code == 255 && refused.stderr.contains("Permission denied"), "{refused:?}");
    run(site.plain_ssh("ssh", &right).args(["root@web", "true"])).ok();
}

#[test]
fn ctrl_c_leaves_instances_running_and_the_next_up_finds_them() {
    let mut site = Site::new();
    let server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]).ok();
    site.kr(&["ssh", "web", "--", "sleep 600 >/dev/null 2>&1 & echo $! > /tmp/pid"]).ok();
    assert_eq!(server.interrupt(), 0);
    assert_eq!(site.containers().len(), 1);
    let _server = site.up();
    wait_until("it runs again", Duration::from_secs(5), || site.status("web") == "running");
    site.kr(&["ssh", "web", "--", "kill -0 $(cat /tmp/pid)"]).ok();
}

#[test]
fn one_connection_to_the_gateway_serves_any_number_of_jumps_one_after_another() {
    let mut site = Site::new();
    let _server = site.up();
    let task = site.json(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]);
    let key = site.key_of(task["task_id"].as_str().unwrap());
    let control = site.path().join("control");
    let control = format!("ControlPath={}", control.display());
    let port = site.ssh_port().to_string();
    let gateway = ["-o", &control, "-p", &port, "you@127.0.0.1"];
    let mut master = site.plain_ssh("ssh", &key);
    run(master.args(["-MNf"]).args(gateway)).ok();
    for round in 0..70 {
        let mut jump = site.plain_ssh("ssh", &key);
        let said = run(jump.args(["-W", "web:22"]).args(gateway));
        assert!(said.stdout.starts_with("SSH-2.0-"), "jump {round}: {said:?}");
    }
    run(site.plain_ssh("ssh", &key).args(["-O", "exit"]).args(gateway)).ok();
}

#[test]
fn keys_of_a_living_vps_are_listed_added_and_removed_and_count_from_the_next_login() {
    let mut site = Site::new();
    let _server = site.up();
    let task = site.json(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]);
    let first = site.key_of(task["task_id"].as_str().unwrap());
    let second = site.make_key("second");
    let login =
        |key: &std::path::Path| run(site.plain_ssh("ssh", key).args(["root@web", "true"])).code;
    assert_eq!((login(&first), login(&second)), (0, 255));
    let public = second.with_extension("pub");
    site.kr(&["vps", "keys", "add", "web", "--public-key-file", public.to_str().unwrap()]).ok();
    assert_eq!((login(&first), login(&second)), (0, 0));
    let keys = site.json(&["vps", "keys", "list", "web"]);
    assert_eq!(keys.as_array().unwrap().len(), 2);
    let print = keys[0]["fingerprint"].as_str().unwrap();
    assert!(print.starts_with("SHA256:"), "{keys}");
    site.kr(&["vps", "keys", "remove", "web", print]).ok();
    assert_eq!((login(&first), login(&second)), (255, 0));
    site.kr(&["vps", "keys", "remove", "web", print]).fails(1, &["no key", "keys list"]);
    site.kr(&["vps", "keys", "add", "web", "--public-key-string", "nonsense"]).fails(2, &["key"]);
    site.kr(&["vps", "create", "--name", "bare", "--image", BUSYBOX]).ok();
    let refused =
        site.kr(&["vps", "keys", "add", "bare", "--public-key-file", public.to_str().unwrap()]);
    refused.fails(1, &["without SSH", "--ssh"]);
}

#[test]
fn what_ssh_config_writes_serves_ssh_and_scp_by_name() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]).ok();
    let config = site.path().join("vps.conf");
    site.kr(&["ssh", "config", "--output", config.to_str().unwrap()]).ok();
    let program = |name: &str| {
        let mut command = std::process::Command::new(name);
        command.env("HOME", site.home()).arg("-F").arg(&config).args(["-o", "BatchMode=yes"]);
        command
    };
    let there = site.path().join("there");
    fs::write(&there, vec![7; 3_000_000]).unwrap();
    run(program("scp").arg(&there).arg("web:/root/copy")).ok();
    let counted = run(program("ssh").args(["web", "wc -c < /root/copy"])).ok();
    assert_eq!(counted.trim(), "3000000");
    // One that is gone is told in our words, and ssh ends.
    site.kr(&["vps", "stop", "web"]).ok();
    let refused = run(program("ssh").args(["web", "true"]));
    assert!(refused.code == 255 && refused.stderr.contains("stopped"), "{refused:?}");
}

#[test]
fn the_doctor_finds_nothing_wrong_with_what_up_has_just_made() {
    let mut site = Site::new();
    let _server = site.up();
    let found = site.kr(&["doctor", "--data-dir", site.data_dir().to_str().unwrap()]);
    assert_eq!(found.code, 0, "{found:?}");
    assert!(found.stdout.contains("safe from others"), "{found:?}");
    assert!(!found.stdout.contains("admin"), "{found:?}");
}
