//! Any image will do.

use std::process::Command;

use kohakuriver_e2e::{BUSYBOX, DEBIAN, SCRATCH, Site, run};

#[test]
fn an_image_with_no_shell_runs_and_executes_what_it_has() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "bare", "--ssh", "--image", SCRATCH]).ok();
    let hello = site.kr(&["ssh", "bare", "--", "/hello", "0", "5"]);
    assert_eq!(hello.code, 5, "{hello:?}");
}

#[test]
fn limits_labels_and_mounts_are_what_was_asked_for() {
    let mut site = Site::new();
    let _server = site.up();
    let created =
        ["vps", "create", "--name", "web", "--ssh", "--image", DEBIAN, "-c", "1", "-m", "256M"];
    let task = site.json(&[&created[..], &["--pids-limit", "100", "--env", "A=b c"]].concat());
    let id = task["task_id"].as_str().unwrap();
    let format = "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} \
                  {{index .Config.Labels \"kohakuriver.task_id\"}} {{len .NetworkSettings.Ports}}";
    let name = format!("kohakuriver-vps-{id}");
    let facts = run(Command::new("docker").args(["inspect", "--format", format, &name])).ok();
    assert_eq!(facts.trim(), format!("1000000000 268435456 100 {id} 0"));
    let inside = site.kr(&["ssh", "web", "--", "touch /shared/seen; printf %s \"$A\""]).ok();
    assert_eq!(inside, "b c");
    assert!(site.data_dir().join("shared/shared_data/seen").exists());
    // The agent's own directories are not the user's to change.
    site.kr(&["ssh", "web", "--", "touch /.kohakuriver/bin/x"]).fails(1, &["Read-only"]);
    site.kr(&["ssh", "web", "--", "touch /.kohakuriver/etc/x"]).fails(1, &["Read-only"]);
}

#[test]
fn an_environment_tarball_in_shared_storage_becomes_a_vps() {
    let mut site = Site::new();
    let folder = site.data_dir().join("shared/kohakuriver-containers");
    std::fs::create_dir_all(&folder).unwrap();
    let tarball = folder.join("tools-1700000000.tar");
    run(Command::new("docker").args(["save", "--output"]).arg(&tarball).arg(BUSYBOX)).ok();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--ssh", "--container", "tools"]).ok();
    site.kr(&["ssh", "web", "--", "busybox true"]).ok();
    let missing = site.kr(&["vps", "create", "--container", "nope"]);
    missing.fails(1, &["no environment 'nope'", "tools", "hint:"]);
}

#[test]
fn the_agent_serves_port_22_inside_and_reaps_orphans() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--ssh", "--image", DEBIAN]).ok();
    let banner = site.kr(&["ssh", "web", "--", "bash -c 'head -c 8 < /dev/tcp/127.0.0.1/22'"]).ok();
    assert_eq!(banner, "SSH-2.0-");
    let orphan = "for i in 1 2 3; do (setsid sh -c 'sleep 0.05 & exit' &); done; sleep 0.5; \
                  ps -eo stat= | grep -c ^Z || true";
    assert_eq!(site.kr(&["ssh", "web", "--", orphan]).ok().trim(), "0");
}
