//! Operations on a running VPS, from the command to its result, beside the same call to Docker on a
//! plain container of the same image.

use std::process::Command;

use kohakuriver_e2e::{DEBIAN, Site, run as run_command};

use crate::sample::{Line, timed};

const ROUNDS: usize = 15;
/// The content that a snapshot has to save.
const DATA: &str = "head -c 200000000 /dev/urandom >/root/data";

pub fn run() -> Vec<Line> {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "ours", "--ssh", "--image", DEBIAN]).ok();
    // Its main process ends when asked to, as ours does.
    let hand = format!("kr-bench-hand-{}", std::process::id());
    let main = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";
    docker(&["run", "--detach", "--name", &hand, DEBIAN, "sh", "-c", main]);
    let mut lines = Vec::new();
    // Each act with the one that undoes it, which is not counted.
    let acts = [
        ("pause", "resume", vec!["pause"], vec!["unpause"]),
        ("resume", "pause", vec!["unpause"], vec!["pause"]),
        ("stop", "restart", vec!["stop"], vec!["start"]),
        ("restart", "", vec!["restart"], vec![]),
    ];
    for (act, back, by_hand, back_by_hand) in acts {
        if act == "resume" {
            site.kr(&["vps", "pause", "ours"]).ok();
            docker(&["pause", &hand]);
        }
        let (mut plain, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            plain.push(timed(|| docker(&[&by_hand[..], &[hand.as_str()]].concat())));
            if !back_by_hand.is_empty() {
                docker(&[&back_by_hand[..], &[hand.as_str()]].concat());
            }
            ours.push(timed(|| drop(site.kr(&["vps", act, "ours"]).ok())));
            if !back.is_empty() {
                site.kr(&["vps", back, "ours"]).ok();
            }
        }
        if act == "resume" {
            site.kr(&["vps", "resume", "ours"]).ok();
            docker(&["unpause", &hand]);
        }
        let plain = Line::millis(format!("docker {}", by_hand[0]), &plain);
        lines.push(Line::millis(format!("vps {act}"), &ours).against(&plain));
        lines.push(plain);
    }
    docker(&["rm", "--force", &hand]);
    lines.extend(snapshots(&site));
    lines
}

fn snapshots(site: &Site) -> Vec<Line> {
    let ours = container(site, "ours");
    site.kr(&["ssh", "ours", "--", DATA]).ok();
    let (mut plain, mut made) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        plain.push(timed(|| docker(&["commit", &ours, "kohakuriver-bench:commit"])));
        docker(&["rmi", "kohakuriver-bench:commit"]);
        made.push(timed(|| drop(site.kr(&["vps", "snapshot", "create", "ours"]).ok())));
        site.kr(&["vps", "snapshot", "delete", "ours", "latest", "--yes"]).ok();
    }
    let plain = Line::millis("docker commit, 200 MB changed", &plain);
    vec![Line::millis("vps snapshot create", &made).against(&plain), plain]
}

fn container(site: &Site, name: &str) -> String {
    let task = site.json(&["vps", "status", name]);
    format!("kohakuriver-vps-{}", task["task_id"].as_str().expect("an id is text"))
}

fn docker(arguments: &[&str]) {
    run_command(Command::new("docker").args(arguments)).ok();
}
