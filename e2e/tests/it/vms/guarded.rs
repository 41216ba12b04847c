//! Machines of people who log in.

use std::fs;
use std::process::Command;

use kohakuriver_e2e::{Guarded, Site, run, wait_until};
use serde_json::json;

use super::BOOT;

#[test]
fn certificates_and_registered_keys_open_a_machine_for_as_long_as_they_are_somebodys() {
    let team = Guarded::start_on(Site::new().with_micro_image_of("n1"));
    let (ann, ben) = (team.person("ann", "operator"), team.person("ben", "user"));
    let machine = json!({
        "vps_backend": "qemu", "vm_image": "micro", "registry_image": null,
        "memory_mb": 160, "vm_disk_size": "1G", "required_cores": 1, "ssh_key_mode": "none",
    });
    team.vps(&ann, "vm", &machine);

    // No key was made: `kohakuriver ssh` brings a certificate.
    assert_eq!(team.kr(&ann, &["ssh", "vm", "--", "hostname; id -un"]).ok(), "vm\nroot\n");
    assert!(team.kr(&ben, &["ssh", "vm.ann", "--", "true"]).code != 0);
    team.share(&ann, "vm", &ben, "use");
    assert_eq!(team.kr(&ben, &["ssh", "vm.ann", "--", "echo in"]).ok(), "in\n");

    // What was signed for one VPS opens no other, and nobody's key stays behind.
    team.delete(Some(&ann), "/api/vps/vm/shares?user=ben").ok();
    assert!(team.kr(&ben, &["ssh", "vm.ann", "--", "true"]).code != 0);

    // The key that somebody registers opens a machine that runs, and not when it is taken back.
    let key = team.site.make_key("registered");
    let public = format!("{}.pub", key.display());
    team.kr(&ann, &["auth", "key", "add", &public]).ok();
    let plain = || {
        let mut ssh = team.site.plain_ssh("ssh", &key);
        ssh.args(["-o", &format!("ProxyJump=ann@127.0.0.1:{}", team.site.ssh_port())]);
        run(ssh.args(["root@vm", "echo in"])).stdout == "in\n"
    };
    wait_until("the registered key opens it", BOOT, plain);
    let text = fs::read_to_string(&public).unwrap();
    let blob = text.split(' ').nth(1).unwrap();
    let inside = team.inside(&ann, "vm", "cat /root/.ssh/authorized_keys 2>/dev/null; true").ok();
    assert!(!inside.contains(blob), "it is nowhere in the guest's files: {inside}");

    // Another key opens the gateway, so that it is the machine that refuses.
    let other = team.site.make_key("other");
    team.kr(&ann, &["auth", "key", "add", &format!("{}.pub", other.display())]).ok();
    let by_other = || {
        let options = "-F /dev/null -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null";
        let way = format!(
            "ProxyCommand=ssh {options} -i {} -p {} -W %h:%p ann@127.0.0.1",
            other.display(),
            team.site.ssh_port()
        );
        let mut ssh = team.site.plain_ssh("ssh", &key);
        run(ssh.args(["-o", &way, "root@vm", "echo in"])).stdout == "in\n"
    };
    wait_until("the other key opens the way to it", BOOT, by_other);
    let told = run(Command::new("ssh-keygen").args(["-lf", &public])).ok();
    team.kr(&ann, &["auth", "key", "remove", told.split(' ').nth(1).unwrap()]).ok();
    wait_until("the machine refuses what was taken back", BOOT, || !by_other());
    assert!(!plain());
    assert_eq!(team.kr(&ann, &["ssh", "vm", "--", "echo in"]).ok(), "in\n");
    team.kr(&ann, &["vps", "delete", "vm", "--yes", "--force"]).ok();
}
