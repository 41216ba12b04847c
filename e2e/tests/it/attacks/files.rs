//! With paths: links out of a container, names that are commands, images that are other disks.

use std::fs;

use kohakuriver_e2e::{Guarded, Site};
use serde_json::json;

#[test]
fn s1_a_link_in_a_vps_is_never_a_way_to_a_file_of_host_or_node() {
    let cluster = Guarded::start();
    let alice = cluster.person("alice", "user");
    let id = cluster.vps(&alice, "web", &json!({}));
    let data = cluster.site.data_dir();
    let data = data.to_str().unwrap();
    for file in
        ["host/host.db", "host/ca.pem", "host/ssh_user_ca_ed25519_key", "n1/runner/identity.json"]
    {
        assert!(fs::metadata(format!("{data}/{file}")).is_ok(), "{file} is there to be stolen");
        let target = format!("{data}/{file}");
        let up = "../../../../../../../..";
        let plant = format!(
            "mkdir -p /srv /.kohakuriver/run; for place in /srv/stdout.log /.kohakuriver/run/stdout.log /shared/stdout.log; do ln -sfn {target} $place; done; ln -sfn / /srv/root; ln -sfn {up}{target} /srv/up"
        );
        cluster.inside(&alice, &id, &plant).ok();
        for path in [
            "/srv/stdout.log",
            "/.kohakuriver/run/stdout.log",
            "/shared/stdout.log",
            "/srv/up",
            &format!("/srv/root{target}"),
            &format!("/proc/1/root{target}"),
            &format!("/proc/self/fd/../../../..{target}"),
            &format!("{up}{target}"),
            &target,
        ] {
            for reader in ["read", "raw", "stat"] {
                let answer =
                    cluster.get(Some(&alice), &format!("/api/fs/{id}/{reader}?path={path}"));
                let refused = (400..500).contains(&answer.status);
                // The link itself may be looked at; what it leads to is not there.
                assert!(
                    refused || (reader == "stat" && answer.text().contains("symlink")),
                    "{reader} {path}: {}{}",
                    answer.head,
                    answer.text()
                );
            }
            let fetched = cluster.site.path().join("fetched");
            let copied = cluster
                .kr(&alice, &["vps", "cp", &format!("{id}:{path}"), fetched.to_str().unwrap()]);
            let got = fs::read(&fetched).unwrap_or_default();
            assert!(copied.code != 0 || got.is_empty(), "{path} was copied");
            let _ = fs::remove_file(fetched);
        }
    }
    // There is no log file of a VPS that the host itself would open.
    for path in ["stdout", "stderr", "logs"] {
        let status = cluster.get(Some(&alice), &format!("/api/task/{id}/{path}")).status;
        assert_eq!(status, 404);
    }
}

#[test]
fn s23_a_path_is_a_path_whatever_is_written_in_it() {
    let cluster = Guarded::start();
    let alice = cluster.person("alice", "user");
    let id = cluster.vps(&alice, "web", &json!({}));
    for name in [
        "it's $(touch /pwned)",
        "`touch /pwned`",
        "a; touch /pwned #",
        "\"$(touch /pwned)\"",
        "-rf",
        "a\nb",
        "%2e%2e",
        "\\\\back\\n",
    ] {
        let path = format!("/tmp/{name}");
        let write = json!({"path": path, "content": "back\\slash 'and' \"quote\""});
        cluster.post(Some(&alice), &format!("/api/fs/{id}/write"), &write).ok();
        let moved = json!({"source": path, "destination": format!("{path} 2")});
        cluster.post(Some(&alice), &format!("/api/fs/{id}/rename"), &moved).ok();
        let read = cluster
            .get(Some(&alice), &format!("/api/fs/{id}/raw?path={}", quoted(&format!("{path} 2"))));
        assert_eq!(read.ok().text(), "back\\slash 'and' \"quote\"", "{name}");
        let gone = format!("/api/fs/{id}/delete?path={}", quoted(&format!("{path} 2")));
        cluster.delete(Some(&alice), &gone).ok();
    }
    let left = "test ! -e /pwned && rmdir '/tmp/it'\\''s $(touch ' '/tmp/`touch ' '/tmp/a; touch ' '/tmp/\"$(touch ' && ls -A /tmp";
    assert_eq!(
        cluster.inside(&alice, &id, left).ok(),
        "",
        "but the directories that were written to"
    );
}

/// As a part of a query.
fn quoted(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[test]
fn s24_what_is_no_key_is_refused_and_what_is_one_is_never_a_command() {
    let cluster = Guarded::start();
    let alice = cluster.person("alice", "user");
    let key = cluster.site.make_key("key");
    let public = fs::read_to_string(key.with_extension("pub")).unwrap();
    let good = public.split(' ').take(2).collect::<Vec<_>>().join(" ");
    for bad in [
        "'; touch /pwned; '",
        "ssh-ed25519 '; touch /pwned",
        "$(touch /pwned)",
        "",
        "command=\"id\"",
    ] {
        let wish = json!({"registry_image": "kohakuriver-test/busybox", "ssh_key_mode": "upload", "ssh_public_key": bad});
        let answer = cluster.post(Some(&alice), "/api/vps/create?wait=false", &wish);
        assert_eq!(answer.status, 422, "{bad}: {}", answer.text());
    }
    // A comment is anybody's to choose.
    let commented = format!("{good} it's $(touch /pwned) `touch /pwned`");
    let settings = json!({"ssh_key_mode": "upload", "ssh_public_key": commented});
    let id = cluster.vps(&alice, "web", &settings);
    cluster.post(Some(&alice), "/api/auth/keys", &json!({"key": public})).ok();
    let mut ssh = cluster.site.plain_ssh("ssh", &key);
    ssh.args([&format!("root@{id}"), "test ! -e /pwned && echo clean"]);
    assert_eq!(kohakuriver_e2e::run(&mut ssh).ok(), "clean\n");
}

#[test]
fn s17_a_machines_image_is_a_name_and_never_a_path() {
    let cluster = Guarded::start_on(Site::new().with_micro_image());
    // A disk in the place where the original would have found it.
    let images = cluster.site.runner_dir("n1").join("shared/vm-images");
    fs::create_dir_all(images.join("x")).unwrap();
    fs::write(images.join("x/secret.qcow2"), "somebody's disk").unwrap();
    for image in [
        "../vm-instances/1/root",
        "../../runner/vm/disks/1/root",
        "x/secret",
        "x/../x",
        "/etc/passwd",
        "..",
        ".",
        ".hidden",
        "a b",
        "a\u{0}b",
        "file:x",
        "json:{\"driver\":\"file\"}",
        "nbd://127.0.0.1",
        "$(id)",
    ] {
        let wish = json!({"vps_backend": "qemu", "vm_image": image, "name": "evil"});
        let answer = cluster.post(Some(&cluster.root), "/api/vps/create?wait=false", &wish);
        assert_eq!(answer.status, 422, "{image}: {}", answer.text());
    }
    for host in ["../n1", "..%2f..%2fetc", "n1/../../x"] {
        let answer = cluster.get(Some(&cluster.root), &format!("/api/vm/images/{host}"));
        assert!([400, 404, 422].contains(&answer.status), "{host}: {}", answer.text());
    }
}

#[test]
fn s20_an_environment_that_is_not_there_is_not_fetched_from_strangers() {
    let cluster = Guarded::start();
    let wish = json!({"name": "ghost", "container_name": "no-such-environment"});
    let answer = cluster.post(Some(&cluster.root), "/api/vps/create", &wish);
    assert!(answer.status >= 400, "{}", answer.text());
    let text = answer.text();
    assert!(text.contains("no-such-environment"), "{text}");
    for word in ["docker.io", "pull access", "registry-1", "manifest"] {
        assert!(!text.contains(word), "a registry was asked: {text}");
    }
    for name in ["../x", "a/b", "evil.example/x", "-v", "x:y@z"] {
        let wish = json!({"container_name": name});
        let answer = cluster.post(Some(&cluster.root), "/api/vps/create?wait=false", &wish);
        assert_eq!(answer.status, 422, "{name}: {}", answer.text());
    }
}
