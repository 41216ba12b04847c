//! Other accounts' disks by way of `--image`, and the engine as a way into the node's network.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc;

use kohakuriver_e2e::{BUSYBOX, Guarded, run};
use serde_json::json;

fn docker(arguments: &[&str]) -> String {
    run(Command::new("docker").args(arguments)).ok().trim().to_owned()
}

#[test]
fn image_never_names_a_snapshot_an_id_or_a_private_image() {
    let cluster = Guarded::start();
    let bob = cluster.person("bob", "user");
    // No approval stands between an operator and the engine.
    let mallory = cluster.person("mallory", "operator");
    let id = cluster.vps(&bob, "secret", &json!({}));
    cluster.inside(&bob, "secret", "echo TOP-SECRET >/root/private.key").ok();
    let made = cluster.post(Some(&bob), "/api/vps/snapshots/secret", &json!({})).json();
    let tag = made["tag"].as_str().unwrap();
    let snapshot = format!("kohakuriver-snapshot/vps-{id}:{tag}");
    let hex = docker(&["image", "inspect", "--format", "{{.Id}}", &snapshot]);
    for reference in [
        snapshot.clone(),
        format!("docker.io/{snapshot}"),
        format!("docker.io/library/{snapshot}"),
        format!("index.docker.io/{snapshot}"),
        format!("DOCKER.IO/{snapshot}"),
        snapshot.to_uppercase(),
        format!("kohakuriver-snapshot/vps-{id}@{hex}"),
        hex.clone(),
        hex.trim_start_matches("sha256:").to_owned(),
        format!("sha256:{}", &hex[7..19]),
        "kohakuriver/base:base".to_owned(),
    ] {
        let wish = json!({"name": "steal", "registry_image": reference});
        let answer = cluster.post(Some(&mallory), "/api/vps/create?wait=false", &wish);
        assert_eq!(answer.status, 422, "{reference}: {}", answer.text());
    }
    // What the node's owner has, under whichever name, is not a user's either.
    let private = format!("127.0.0.1:1/krtest-private/vps-{id}:1");
    docker(&["tag", BUSYBOX, &private]);
    let hub = format!("krtest-private/vps-{id}:1");
    docker(&["tag", BUSYBOX, &hub]);
    for reference in [&private, &hub] {
        let wish = json!({"name": "steal", "registry_image": reference});
        let answer = cluster.post(Some(&mallory), "/api/vps/create", &wish);
        assert!(answer.status >= 400, "{reference}: {}", answer.text());
    }
    docker(&["rmi", &private, &hub]);
}

#[test]
fn engine_is_no_way_into_the_nodes_network() {
    let cluster = Guarded::start();
    let mallory = cluster.person("mallory", "operator");
    let internal = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = internal.local_addr().unwrap().port();
    let (asked, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in internal.incoming().flatten() {
            let _ = asked.send(());
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 403 x\r\nContent-Length: 6\r\n\r\nsecret");
        }
    });
    let mut answers = Vec::new();
    for registry in [
        format!("127.0.0.1:{port}"),
        "127.0.0.1:1".to_owned(),
        format!("localhost:{port}"),
        "169.254.169.254".to_owned(),
        "registry.internal".to_owned(),
    ] {
        let wish = json!({"name": "proxy", "registry_image": format!("{registry}/x/y:z")});
        let answer = cluster.post(Some(&mallory), "/api/vps/create", &wish);
        let text = answer.text();
        assert!(answer.status >= 400, "{text}");
        assert!(
            text.contains("allows no images of the registry") && !text.contains("secret"),
            "{text}"
        );
        answers.push(text.replace(&registry, "REGISTRY"));
    }
    assert!(requests.try_recv().is_err(), "the engine was made to ask");
    answers.dedup();
    assert_eq!(answers.len(), 1, "ports are told apart: {answers:?}");
    let node = cluster.get(Some(&mallory), "/api/nodes").json();
    assert!(
        node[0]["allowed_registries"].as_array().unwrap().contains(&json!("docker.io")),
        "{node}"
    );
}
