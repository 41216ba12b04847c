//! What an operator may have beyond what all containers have, and only where the node's owner has
//! said so.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use kohakuriver_e2e::{BUSYBOX, Site};

use super::{create, inside};

fn can_be_privileged() -> bool {
    let run = ["run", "--rm", "--privileged", BUSYBOX, "/bin/true"];
    Command::new("docker").args(run).output().unwrap().status.success()
}

#[test]
fn privileged_vpses_and_mounts_are_refused_where_the_nodes_owner_has_not_allowed_them() {
    let mut site = Site::new();
    let _server = site.up();
    for asked in [&["--privileged"][..], &["--mount", "/etc:/node:ro"]] {
        let refused = site.kr(&[&["vps", "create", "--image", BUSYBOX], asked].concat());
        refused.fails(1, &["lets no VPS"]);
    }
    let all = site.json(&["vps", "list"]);
    assert_eq!(all.as_array().unwrap().len(), 0, "nothing is left of what was refused: {all}");
}

#[test]
fn what_the_nodes_owner_allows_works_lasts_and_is_seen_and_no_link_leads_further() {
    let outside = tempfile::Builder::new().prefix("kr-allowed").tempdir().unwrap();
    let root = outside.path().canonicalize().unwrap();
    for part in ["data/sets", "data/results", "secret"] {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    fs::write(root.join("data/sets/set"), "a set").unwrap();
    fs::write(root.join("secret/key"), "the node's").unwrap();
    let path = |part: &str| root.join(part).display().to_string();
    let mut site = Site::new();
    let server = site.up_with(&["--allow-privileged", "--allow-mount", &path("data")]);
    let [sets, work] =
        [format!("{}:/sets:ro", path("data/sets")), format!("{}:/results", path("data/results"))];
    let image = ["vps", "create", "--image", BUSYBOX];
    let mounts = ["--name", "reader", "--mount", &sets, "--mount", &work];
    site.kr(&[&image[..], &mounts].concat()).ok();
    let holds = |what: &str| {
        assert_eq!(inside(&site, "reader", "cat /sets/set").ok(), "a set", "{what}");
        assert_ne!(inside(&site, "reader", "touch /sets/new").code, 0, "{what}");
        inside(&site, "reader", &format!("echo {what} > /results/said")).ok();
        assert_eq!(
            fs::read_to_string(root.join("data/results/said")).unwrap(),
            format!("{what}\n")
        );
    };
    holds("created");
    site.kr(&["vps", "restart", "reader"]).ok();
    holds("restarted");
    site.kr(&["vps", "snapshot", "create", "reader", "--name", "clean"]).ok();
    site.kr(&["vps", "snapshot", "restore", "reader", "clean", "--yes"]).ok();
    holds("restored");
    // A copy has the disk, not the node's directories.
    site.kr(&["vps", "create", "--name", "copy", "--from-snapshot", "reader@clean"]).ok();
    assert_ne!(inside(&site, "copy", "cat /sets/set").code, 0);
    // All is as it was but for what was asked.
    let rights = inside(&site, "reader", "grep CapBnd /proc/1/status").ok();
    assert_eq!(rights.split_whitespace().last(), Some("00000000a00425fb"));
    let refused = site.kr(&[&image[..], &["--mount", &format!("{}:/x", path("secret"))]].concat());
    refused.fails(1, &["lets no VPS mount"]);
    for up in ["data/../secret", "data/sets/../../secret"] {
        let refused = site.kr(&[&image[..], &["--mount", &format!("{}:/x", path(up))]].concat());
        refused.fails(2, &["not a plain path"]);
    }
    // Root of the node, because its owner and an operator said so. A machine that is itself confined
    // has no such rights to give, and its engine says so to everybody; `vms/distributions/privileged.rs`
    // has a machine that has them.
    let made = site.kr(&[&image[..], &["--name", "deep", "--privileged"]].concat());
    let has_rights = can_be_privileged();
    if has_rights {
        made.ok();
        inside(&site, "deep", "mount -t tmpfs none /tmp && umount /tmp").ok();
        site.kr(&["vps", "restart", "deep"]).ok();
        inside(&site, "deep", "mount -t tmpfs none /tmp && umount /tmp").ok();
        let shown = site.kr(&["vps", "status", "deep"]).ok();
        assert!(shown.contains("root of the node"), "{shown}");
    } else {
        made.fails(1, &["unable to apply caps"]);
    }
    let shown = site.kr(&["vps", "status", "reader"]).ok();
    assert!(shown.contains(&sets) && shown.contains(&work), "{shown}");
    let log = site.kr(&["audit", "list"]).ok();
    assert!(log.contains("privileged") && log.contains(&format!("mounts {sets}")), "{log}");
    // Somebody with the mount puts a link where another's mount, or the next start's, would be.
    site.kr(&["vps", "stop", "reader"]).ok();
    fs::rename(root.join("data/results"), root.join("data/gone")).unwrap();
    symlink(root.join("secret"), root.join("data/results")).unwrap();
    site.kr(&["vps", "restart", "reader"]).fails(1, &["is a link"]);
    let refused = site.kr(&[&image[..], &["--mount", &work]].concat());
    refused.fails(1, &["is a link"]);
    // What is not allowed any more does not start again.
    assert_eq!(server.interrupt(), 0);
    let _server = site.up();
    site.kr(&["vps", "restart", "reader"]).fails(1, &["lets no VPS mount"]);
    if has_rights {
        site.kr(&["vps", "restart", "deep"]).fails(1, &["lets no VPS be privileged"]);
    }
    assert_eq!(create(&site, "plain", BUSYBOX).len(), 19);
}
