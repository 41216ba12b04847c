//! Unconfined VPSes: the roles and nodes that allow them, and their audit entries.

use anyhow::Result;
use kohakuriver_model::{Inventory, Registry};
use kohakuriver_testkit::{FakeRunner, Reaction, TestHost, inventory};
use serde_json::{Value, json};

fn wishes() -> [Value; 2] {
    [
        json!({"required_cores": 0, "privileged": true}),
        json!({"required_cores": 0, "additional_mounts": ["/data/sets:/sets:ro"]}),
    ]
}

fn allowing() -> Inventory {
    Inventory { allows_privileged: true, allowed_mounts: vec!["/data".to_owned()], ..inventory() }
}

#[tokio::test]
async fn unconfined_vps_is_refused_for_users_even_as_request() -> Result<()> {
    let host = TestHost::start_with(|config| config.auth.enabled = true).await?;
    let _runner = FakeRunner::join_as(&host, "n1", Reaction::Obey, allowing()).await?;
    let group = host.post("/api/auth/groups", json!({"name": "lab"})).await?;
    assert_eq!(group.status, 200, "{group:?}");
    let [alice, olga] =
        [host.person("alice", "user").await?, host.person("olga", "operator").await?];
    // A rule that allows anything else does not allow this.
    let path = format!("/api/auth/groups/{}", group.body["id"]);
    let rule = json!({"auto_approve": {}});
    assert_eq!(host.patch(&path, rule).await?.status, 200);
    let member = format!("{path}/members/{}", alice.id);
    assert_eq!(host.put(&member).await?.status, 200);
    let plain = host.post_as(&alice, "/api/vps/create", json!({"required_cores": 0})).await?;
    assert_eq!((plain.status, plain.text("status")), (200, "running"), "{plain:?}");
    for wish in wishes() {
        let refused = host.post_as(&alice, "/api/vps/create", wish.clone()).await?;
        assert_eq!((refused.status, refused.text("code")), (403, "role"), "{wish}");
        let made = host.post_as(&olga, "/api/vps/create", wish).await?;
        assert_eq!((made.status, made.text("status")), (200, "running"), "{made:?}");
    }
    let waiting = host.get("/api/tasks/pending-approval").await?.body;
    assert_eq!(waiting, json!([]), "nothing waits for an operator who would not notice");
    // An operator's token of a lower role has not an operator's permissions.
    let token = json!({"name": "script", "role": "user"});
    let token = host.post_as(&olga, "/api/auth/tokens/create", token).await?;
    let lesser = kohakuriver_testkit::Person { token: token.text("token").to_owned(), ..olga };
    let refused = host.post_as(&lesser, "/api/vps/create", wishes()[0].clone()).await?;
    assert_eq!((refused.status, refused.text("code")), (403, "role"));
    let log = host.get("/api/audit?action=vps.create").await?.body;
    let details: Vec<_> =
        log.as_array().unwrap().iter().rev().map(|e| e["detail"].as_str().unwrap()).collect();
    assert_eq!(details, ["", "", "privileged", "", "mounts /data/sets:/sets:ro", ""], "{log}");
    Ok(())
}

#[tokio::test]
async fn unlisted_registry_is_refused_without_asking_node() -> Result<()> {
    let host = TestHost::start().await?;
    let allowing = Inventory {
        allowed_registries: Some(Registry::usual()),
        local_images: vec!["lab/*".parse()?],
        ..inventory()
    };
    let _runner = FakeRunner::join_as(&host, "n1", Reaction::Obey, allowing).await?;
    let create = async |image: &str| {
        host.post("/api/vps/create", json!({"registry_image": image, "required_cores": 0})).await
    };
    for image in ["127.0.0.1:5000/x", "localhost/x", "reg.lab/x", "ghcr.io:8443/x"] {
        let refused = create(image).await?;
        let detail = refused.text("detail");
        assert!(refused.status == 409 || refused.status == 503, "{refused:?}");
        assert!(detail.contains("allows no images of the registry"), "{refused:?}");
    }
    for image in ["kohakuriver/base:base", "kohakuriver-snapshot/vps-7:1", "sha256:0a0b"] {
        assert_eq!(create(image).await?.status, 422, "{image}");
    }
    for image in ["debian:12", "lab/tool"] {
        assert_eq!(create(image).await?.status, 200, "{image}");
    }
    let node = host.get("/api/nodes/n1").await?.body;
    assert_eq!(node["local_images"], json!(["lab/*"]), "{node}");
    Ok(())
}

#[tokio::test]
async fn placement_selects_a_node_that_allows_the_mount() -> Result<()> {
    let host = TestHost::start().await?;
    let _strict = FakeRunner::join(&host, "strict", Reaction::Obey).await?;
    for wish in wishes() {
        let refused = host.post("/api/vps/create", wish).await?;
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!(refused.text("detail").contains("lets no VPS"), "{refused:?}");
    }
    let open = FakeRunner::join_as(&host, "open", Reaction::Obey, allowing()).await?;
    for wish in wishes() {
        let made = host.post("/api/vps/create", wish).await?;
        assert_eq!(made.body["assigned_node"]["hostname"], "open", "{made:?}");
        let id = made.text("task_id");
        let order = open.order(id.parse()?).unwrap();
        assert!(order.spec.is_unconfined());
        let shown = host.get(&format!("/api/status/{id}")).await?.body;
        let dirs = shown["docker_mount_dirs"].as_array().unwrap();
        assert_eq!(shown["docker_privileged"] == true, dirs.is_empty(), "{shown}");
        // A restart keeps it.
        assert_eq!(host.post(&format!("/api/vps/restart/{id}"), json!({})).await?.status, 202);
        host.wait_for(id, "running").await?;
        let again = open.order(id.parse()?).unwrap();
        assert!(again.intent.generation > order.intent.generation);
        assert_eq!(again.spec, order.spec);
    }
    for outside in ["/database:/d", "/data/../etc:/d", "/data:/proc", "/data"] {
        let wish = json!({"required_cores": 0, "additional_mounts": [outside]});
        let refused = host.post("/api/vps/create", wish).await?;
        assert!(matches!(refused.status, 503 | 422), "{outside}: {refused:?}");
    }
    let machine = json!({"required_cores": 1, "vps_backend": "qemu", "privileged": true});
    assert_eq!(host.post("/api/vps/create", machine).await?.status, 422);
    let nodes = host.get("/api/nodes/open").await?.body;
    assert_eq!(
        (&nodes["allows_privileged"], &nodes["allowed_mounts"]),
        (&json!(true), &json!(["/data"]))
    );
    Ok(())
}
