//! Certificates, made by OpenSSH's own tools and shown by its own client.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "support/instance.rs"]
mod support;

use std::path::Path;
use std::process::Command;

use support::{Instance, text, write_config};

/// An instance without authorized keys that accepts certificates of the CA in its folder.
fn trusting() -> Instance {
    let instance = Instance::start_with(|config| config.authorized_keys.clear());
    make_key(&instance.path("ca"));
    make_key(&instance.path("other_ca"));
    trust(&instance, "ca", "vps-7");
    instance
}

fn trust(instance: &Instance, ca: &str, principal: &str) {
    let public = std::fs::read_to_string(instance.path(&format!("{ca}.pub"))).unwrap();
    let key = public.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    let mut config = kohakuriver_agent::AgentConfig::read(instance.dir.path()).unwrap();
    config.authorized_keys = vec![format!("cert-authority,principals=\"{principal}\" {key}")];
    write_config(instance.dir.path(), &config);
}

fn make_key(path: &Path) {
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status();
    assert!(made.unwrap().success());
}

/// Signs `id`, whose certificate `ssh -i id` finds beside it.
fn sign(instance: &Instance, ca: &str, options: &[&str]) {
    let output = Command::new("ssh-keygen")
        .args(["-q", "-s"])
        .arg(instance.path(ca))
        .args(["-I", "user 1 alice"])
        .args(options)
        .arg(instance.path("id.pub"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[track_caller]
fn assert_admitted(instance: &Instance, user: &str) {
    let output = instance.ssh_as(user, "id", &[], "id -un").output().unwrap();
    assert_eq!(text(&output.stdout).trim(), user, "{}", text(&output.stderr));
}

#[track_caller]
fn assert_refused(instance: &Instance, what: &str) {
    let output = instance.ssh(&[], "true").output().unwrap();
    assert_eq!(output.status.code(), Some(255), "{what}");
    assert!(text(&output.stderr).contains("Permission denied (publickey)"), "{what}");
}

#[test]
fn a_certificate_of_the_trusted_ca_for_this_vps_logs_in_as_any_user() {
    let instance = trusting();
    assert_refused(&instance, "no certificate yet");
    sign(&instance, "ca", &["-n", "vps-7", "-V", "-5m:+5m"]);
    assert_admitted(&instance, "root");
    // What a login shell that is none says comes from inside: ssh's own failure would be 255.
    let output = instance.ssh_as("nobody", "id", &[], "true").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let output = instance.ssh_as("nosuchuser", "id", &[], "true").output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    // A key of another kind, and an RSA one with the signatures that are good today.
    for kind in ["ecdsa", "rsa"] {
        let _ = std::fs::remove_file(instance.path("id"));
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-N", "", "-f"])
            .arg(instance.path("id"))
            .status();
        assert!(made.unwrap().success());
        sign(&instance, "ca", &["-n", "vps-7", "-V", "-5m:+5m"]);
        assert_admitted(&instance, "root");
    }
}

#[test]
fn a_certificate_that_is_not_exactly_right_admits_nobody() {
    let instance = trusting();
    let valid = ["-V", "-5m:+5m"];
    let cases: [(&str, &str, &[&str]); 8] = [
        ("expired", "ca", &["-n", "vps-7", "-V", "-10m:-1m"]),
        ("of tomorrow", "ca", &["-n", "vps-7", "-V", "+1d:+2d"]),
        ("another VPS's", "ca", &["-n", "vps-8"]),
        ("the user's name", "ca", &["-n", "root"]),
        ("two VPSes'", "ca", &["-n", "vps-7,vps-8"]),
        ("everybody's", "ca", &[]),
        ("another CA's", "other_ca", &["-n", "vps-7"]),
        ("restricted", "ca", &["-n", "vps-7", "-O", "force-command=/bin/true"]),
    ];
    for (what, ca, options) in cases {
        let options =
            if options.contains(&"-V") { options.to_vec() } else { [options, &valid[..]].concat() };
        sign(&instance, ca, &options);
        assert_refused(&instance, what);
    }
    sign(&instance, "ca", &["-h", "-n", "vps-7", "-V", "-5m:+5m"]);
    assert_refused(&instance, "a machine's");
}

#[test]
fn trust_that_is_taken_back_counts_at_the_next_login() {
    let instance = trusting();
    sign(&instance, "ca", &["-n", "vps-7", "-V", "-5m:+5m"]);
    assert_admitted(&instance, "root");
    trust(&instance, "other_ca", "vps-7");
    assert_refused(&instance, "the CA was replaced");
    trust(&instance, "ca", "vps-70");
    assert_refused(&instance, "the principal was replaced");
}

#[test]
fn a_key_beside_its_refused_certificate_still_counts() {
    let instance = Instance::start();
    make_key(&instance.path("ca"));
    sign(&instance, "ca", &["-n", "vps-7", "-V", "-10m:-1m"]);
    assert_admitted(&instance, "root");
}
