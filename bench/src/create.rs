//! The time from creation to the first command inside: a VPS, and `docker run` with OpenSSH's sshd.

use std::path::Path;
use std::process::Command;

use kohakuriver_e2e::{DEBIAN, Site, Sshd, run as run_command};

use crate::sample::{Line, timed};

const ROUNDS: usize = 15;

pub fn run() -> Vec<Line> {
    let mut site = Site::new();
    let _server = site.up();
    let key = site.make_key("bench");
    let sshd = Sshd::start(&key);
    let (mut plain, mut command, mut jump) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let container = format!("kr-bench-{}-{round}", std::process::id());
        plain.push(timed(|| {
            docker(&["run", "--detach", "--name", &container, DEBIAN, "sleep", "600"]);
            run_command(sshd.ssh().arg("true")).ok();
        }));
        docker(&["rm", "--force", &container]);

        command.push(timed(|| {
            create(&site, &key, "one");
            let key = key.to_str().expect("our own path");
            site.kr(&["ssh", "one", "--key", key, "--", "true"]).ok();
        }));
        delete(&site, "one");

        jump.push(timed(|| {
            create(&site, &key, "two");
            run_command(site.plain_ssh("ssh", &key).args(["root@two", "true"])).ok();
        }));
        delete(&site, "two");
    }
    let plain = Line::millis("docker run -d; ssh to a running sshd", &plain);
    let command = Line::millis("vps create; kohakuriver ssh", &command).against(&plain);
    let jump = Line::millis("vps create; ssh -J", &jump).against(&plain);
    vec![plain, command, jump]
}

fn create(site: &Site, key: &Path, name: &str) {
    let public = format!("{}.pub", key.display());
    let arguments = ["vps", "create", "--name", name, "--image", DEBIAN, "--public-key-file"];
    site.kr(&[&arguments[..], &[public.as_str()]].concat()).ok();
}

fn delete(site: &Site, name: &str) {
    site.kr(&["vps", "delete", name, "--yes", "--force"]).ok();
}

fn docker(arguments: &[&str]) {
    run_command(Command::new("docker").args(arguments)).ok();
}
