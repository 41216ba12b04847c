//! Which images of a real engine a user gets, and what becomes of their VOLUMEs.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

use super::*;

fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// An image of the tests' repository that goes with the test.
fn image(changes: &[&str]) -> (String, Tag) {
    let name = format!("kohakuriver-test/made{}:1", fresh_id());
    let container = docker(&["create", IMAGE]);
    let changes = changes.iter().flat_map(|change| ["--change", change]);
    let commit: Vec<&str> =
        ["commit"].into_iter().chain(changes).chain([container.as_str(), &name]).collect();
    docker(&commit);
    docker(&["rm", &container]);
    (name.clone(), Tag(name))
}

/// Runs a command in the instance and returns its output.
fn said(id: InstanceId, command: &str) -> String {
    docker(&["exec", &format!("kohakuriver-vps-{id}"), "/bin/sh", "-c", command])
}

fn volumes(id: InstanceId) -> String {
    let format = "{{range .Mounts}}{{if eq .Type \"volume\"}}{{.Destination}} {{end}}{{end}}";
    docker(&["inspect", "--format", format, &format!("kohakuriver-vps-{id}")])
}

async fn prepared(node: &Node, image: &str) -> Result<String, BackendError> {
    node.backend.prepare(&fresh_order(image), &|_, _| {}).await
}

#[tokio::test]
async fn user_references_reach_no_image_that_is_not_theirs() {
    let node = Node::new();
    let id = docker(&["image", "inspect", "--format", "{{.Id}}", IMAGE]);
    let snapshot = format!("kohakuriver-snapshot/vps-{}:1796062265", fresh_id());
    let private = format!("krtest-private/tool{}:1", fresh_id());
    let _tags = (Tag(snapshot.clone()), Tag(private.clone()));
    for name in [&snapshot, &private] {
        docker(&["tag", IMAGE, name]);
    }
    let hex = id.trim_start_matches("sha256:");
    for reference in [
        snapshot.clone(),
        format!("docker.io/{snapshot}"),
        format!("docker.io/library/{snapshot}"),
        format!("index.docker.io/{snapshot}"),
        id.clone(),
        hex.to_owned(),
        format!("sha256:{}", &hex[..12]),
    ] {
        let refused = prepared(&node, &reference).await.unwrap_err();
        assert!(matches!(refused, BackendError::NotAllowed { .. }), "{reference}: {refused}");
    }
    // What the node's owner has pulled or made, and what begins as an id does.
    for reference in [private.clone(), format!("{}:latest", &hex[..12])] {
        let refused = prepared(&node, &reference).await.unwrap_err();
        assert!(matches!(refused, BackendError::ImageNotFound { .. }), "{reference}: {refused}");
    }
    assert_eq!(prepared(&node, IMAGE).await.unwrap(), id, "its repository is listed");
    let absent = prepared(&node, "kohakuriver-test/none:1").await.unwrap_err();
    assert_eq!(absent.code(), FailureCode::ImageNotFound, "{absent}");
    assert!(absent.to_string().contains("does not pull") && absent.hint().is_some(), "{absent}");
}

/// A registry that answers every request with 403 and a secret.
fn registry() -> (u16, std::sync::mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, requests) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = asked.send(());
            let _ = stream.read(&mut [0; 4096]);
            let body = "internal-body-secret-123";
            let head = format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {}", body.len());
            let _ = write!(stream, "{head}\r\nConnection: close\r\n\r\n{body}");
        }
    });
    (port, requests)
}

#[tokio::test]
async fn engine_asks_no_registry_that_is_not_listed() {
    let node = Node::new();
    let (port, requests) = registry();
    for reference in
        [format!("127.0.0.1:{port}/x/y:z"), format!("localhost:{port}/x"), "localhost/x".to_owned()]
    {
        let refused = prepared(&node, &reference).await.unwrap_err();
        assert!(matches!(refused, BackendError::NotAllowed { .. }), "{reference}: {refused}");
        assert!(refused.hint().is_some_and(|hint| hint.contains("--allow-registry")));
    }
    assert!(requests.try_recv().is_err(), "the registry was asked");

    // Listed, it is asked, and its answer is not passed on.
    let mut settings = containers();
    settings.registries = vec![format!("127.0.0.1:{port}").parse().unwrap()];
    let backend = DockerBackend::new(DockerConfig {
        layout: node.layout.clone(),
        node: node.name.parse().unwrap(),
        socket: None,
        stop_grace: Duration::from_secs(1),
        containers: settings,
    });
    let order = fresh_order(&format!("127.0.0.1:{port}/x/y:z"));
    let refused = backend.prepare(&order, &|_, _| {}).await.unwrap_err();
    assert!(requests.try_recv().is_ok(), "the registry was not asked");
    let text = format!("{refused} {:?}", refused.hint());
    assert_eq!(refused.code(), FailureCode::ImageNotFound, "{text}");
    assert!(!text.contains("secret") && !text.contains("403"), "{text}");
}

#[tokio::test]
async fn volumes_of_an_image_are_in_snapshots_and_copies() {
    let node = Node::new();
    node.install();
    let (name, _tag) = image(&["VOLUME /data /var/lib/state", "HEALTHCHECK CMD true", "ENV A=b"]);
    let mut order = fresh_order(&name);
    let id = order.task_id;
    running(&node, &order).await;
    assert_eq!(volumes(id), "", "the engine has made volumes");
    let health = "{{json .Config.Healthcheck}}";
    let health = docker(&["inspect", "--format", health, &format!("kohakuriver-vps-{id}")]);
    assert!(health.contains("NONE"), "{health}");
    assert_eq!(said(id, "mkdir -p /data; echo 1 >/data/state; echo 1 >/root/state; echo $A"), "b");
    let made = node.backend.create_snapshot(id, &SnapshotSpec::default(), 0).await.unwrap();
    assert!(made.own_bytes > 0 && made.own_bytes < 1 << 20, "{made:?}");
    said(id, "echo 2 >/data/state; echo 2 >/root/state");
    node.backend.remove(id).await.unwrap();

    order.intent = order.intent.restore();
    order.spec.snapshot = Some(SnapshotRef { task_id: id, tag: made.tag });
    running(&node, &order).await;
    assert_eq!(said(id, "cat /data/state /root/state"), "1\n1");

    let mut copy = fresh_order(&name);
    copy.spec.snapshot = order.spec.snapshot;
    running(&node, &copy).await;
    assert_eq!(said(copy.task_id, "cat /data/state /root/state; echo $A"), "1\n1\nb");
    for id in [copy.task_id, id] {
        node.backend.remove(id).await.unwrap();
    }
    node.backend.delete_all_snapshots(id).await.unwrap();
    let plain = format!(
        "kohakuriver-plain/image:{}",
        docker(&["image", "inspect", "--format", "{{.Id}}", &name]).trim_start_matches("sha256:")
    );
    drop(Tag(plain));
}

#[tokio::test]
async fn data_in_volumes_of_old_containers_is_not_lost() {
    let node = Node::new();
    node.install();
    let (name, _tag) = image(&["VOLUME /data"]);
    let order = fresh_order(&name);
    let id = order.task_id;
    agent_files::write_instance_files(&node.layout, &order).unwrap();
    node.backend.prepare(&fresh_order(IMAGE), &|_, _| {}).await.unwrap();
    // As older versions did: from the image itself.
    let whole = docker(&["image", "inspect", "--format", "{{.Id}}", &name]);
    node.backend.create(&order, &whole).await.unwrap();
    node.backend.start(id).await.unwrap();
    answers(&node.backend, id).await;
    assert_eq!(volumes(id), "/data");
    said(id, "echo 1 >/data/state");
    assert_eq!(node.backend.outside(id).await.unwrap(), ["/data"]);
    let refused = node.backend.create_snapshot(id, &SnapshotSpec::default(), 0).await.unwrap_err();
    assert!(refused.to_string().contains("/data") && refused.hint().is_some(), "{refused}");
    assert_eq!(said(id, "cat /data/state"), "1");

    // A snapshot that an older version made of it has VOLUMEs; what comes of it has none.
    let old = SnapshotRef { task_id: id, tag: 7 };
    let old_name = format!("kohakuriver-snapshot/vps-{id}:7");
    docker(&["commit", "--message", "old", &format!("kohakuriver-vps-{id}"), &old_name]);
    let mut copy = fresh_order(IMAGE);
    copy.spec.snapshot = Some(old);
    running(&node, &copy).await;
    assert_eq!(volumes(copy.task_id), "");
    let listed = node.backend.list_snapshots(id).await.unwrap();
    assert_eq!((listed.len(), listed[0].message.as_str(), listed[0].in_use), (1, "old", true));
    node.backend.remove(copy.task_id).await.unwrap();
    node.backend.remove(id).await.unwrap();
    node.backend.delete_all_snapshots(id).await.unwrap();
}

#[tokio::test]
async fn image_configuration_without_measure_is_refused() {
    let node = Node::new();
    let long = format!("ENV A={}", "b".repeat(30_000));
    let many: Vec<String> = (0..12).map(|at| long.replace("A=", &format!("A{at}="))).collect();
    let changes: Vec<&str> = many.iter().map(String::as_str).collect();
    let (name, _tag) = image(&changes);
    let refused = prepared(&node, &name).await.unwrap_err();
    assert_eq!(refused.code(), FailureCode::ImageUnavailable, "{refused}");
}

#[tokio::test]
async fn edits_of_etc_files_outlive_restart_snapshot_and_copy() {
    let node = Node::new();
    node.install();
    let mut order = fresh_order(IMAGE);
    order.spec.name = Some("web".parse().unwrap());
    let id = order.task_id;
    running(&node, &order).await;
    let all = "cat /etc/hosts /etc/resolv.conf /etc/hostname";
    let first = said(id, all);
    assert!(first.contains("127.0.1.1\tweb") && first.contains("nameserver "), "{first}");
    assert!(!first.contains("127.0.0.11") && first.ends_with("web"), "{first}");
    said(id, "echo '10.7.7.7 mine' >>/etc/hosts; echo 'options timeout:1' >>/etc/resolv.conf");
    said(id, "echo my >/etc/hostname");
    let edited = said(id, all);
    for _ in 0..2 {
        node.backend.kill(id).await.unwrap();
        node.backend.start(id).await.unwrap();
        answers(&node.backend, id).await;
        assert_eq!(said(id, all), edited);
    }
    // Also of one that is started again while it runs.
    node.backend.start(id).await.unwrap();
    let made = node.backend.create_snapshot(id, &SnapshotSpec::default(), 0).await.unwrap();
    said(id, "echo '10.8.8.8 later' >>/etc/hosts");
    node.backend.remove(id).await.unwrap();
    order.intent = order.intent.restore();
    order.spec.snapshot = Some(SnapshotRef { task_id: id, tag: made.tag });
    running(&node, &order).await;
    assert_eq!(said(id, all), edited, "as it was at the snapshot");

    let mut copy = fresh_order(IMAGE);
    copy.spec.name = Some("copy".parse().unwrap());
    copy.spec.snapshot = order.spec.snapshot;
    running(&node, &copy).await;
    let seen = said(copy.task_id, all);
    assert!(seen.contains("10.7.7.7 mine") && seen.contains("options timeout:1"), "{seen}");
    assert!(seen.contains("127.0.1.1\tcopy") && seen.ends_with("\ncopy"), "{seen}");
    assert!(!seen.contains("web"), "another's name: {seen}");
    for id in [copy.task_id, id] {
        node.backend.remove(id).await.unwrap();
    }
    node.backend.delete_all_snapshots(id).await.unwrap();
}
