//! The contract of every backend, checked on the fake and on the node's real Docker.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use futures_util::StreamExt;
use kohakuriver_model::{
    BackendKind, DockerState, FailureCode, GpuRef, ImageSource, InstanceId, Intent, Inventory,
    NumaPin, SnapshotRef,
};
use kohakuriver_runner_link::protocol::Order;

use super::docker::{ContainerSettings, DockerBackend, DockerConfig};
use super::fake::FakeBackend;
use super::{Backend, BackendError, Change, Lifecycle, SnapshotSpec};
use crate::agent_files;
use crate::agent_stream;
use crate::layout::Layout;
use crate::plan::tests::order;

mod images;
mod leftovers;
mod machines;

/// For what happens at once where the computer has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(120);
const IMAGE: &str = "kohakuriver-test/busybox:latest";

/// A Docker backend of its own, whose containers go with it.
struct Node {
    // Before the directory, over a part of which it mounts.
    backend: DockerBackend,
    dir: tempfile::TempDir,
    layout: Layout,
    name: String,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("data"), dir.path().join("shared"));
        let name = format!("test-{}", fresh_id());
        let backend = DockerBackend::new(DockerConfig {
            layout: layout.clone(),
            node: name.parse().unwrap(),
            socket: None,
            stop_grace: Duration::from_secs(1),
            containers: containers(),
        });
        Self { backend, dir, layout, name }
    }

    fn install(&self) {
        agent_files::install_agent(&self.layout, &example("standin_agent")).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let filter = format!("label=kohakuriver.node={}", self.name);
        let listed = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output();
        let Ok(listed) = listed else { return };
        for id in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
            let _ = Command::new("docker").args(["rm", "-f", id]).output();
        }
    }
}

/// An image's name that goes with the test.
struct Tag(String);

impl Drop for Tag {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", "-f", &self.0]).output();
    }
}

/// All on one network: the engine has addresses for thirty, and each test of ours may leave one.
fn containers() -> ContainerSettings {
    ContainerSettings {
        network: "krtest-contract".parse().unwrap(),
        local_images: vec!["kohakuriver-test/*".parse().unwrap()],
        ..ContainerSettings::default()
    }
}

fn fresh_id() -> InstanceId {
    InstanceId::from_u64(rand::random_range(1..i64::MAX as u64))
}

fn fresh_order(image: &str) -> Order {
    let mut order = order(Intent::created());
    order.task_id = fresh_id();
    order.spec.image = ImageSource::Registry { reference: image.to_owned() };
    order
}

/// `cargo test` builds the examples beside the tests.
fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is missing: cargo test builds it", path.display());
    path
}

async fn life(backend: &dyn Backend, id: InstanceId) -> Option<Lifecycle> {
    backend.inspect(id).await.unwrap().map(|found| found.life)
}

async fn answers(backend: &dyn Backend, id: InstanceId) {
    for _ in 0..2400 {
        let agent = backend.agent(id).unwrap();
        if agent_stream::ping(&agent).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the agent does not answer");
}

/// The life of one instance; every act is done twice, as after a crash.
async fn contract(backend: &dyn Backend, layout: &Layout, order: Order) {
    let id = order.task_id;
    agent_files::write_instance_files(layout, &order).unwrap();
    let mut events = backend.events();
    assert_eq!(life(backend, id).await, None);
    backend.stop(id).await.unwrap();
    backend.remove(id).await.unwrap();

    let image = backend.prepare(&order, &|_, _| {}).await.unwrap();
    backend.create(&order, &image).await.unwrap();
    let second = backend.create(&order, &image).await;
    assert!(matches!(second, Err(BackendError::Refused { .. })), "{second:?}");
    let created = backend.inspect(id).await.unwrap().unwrap();
    assert_eq!((created.life, &created.started), (Lifecycle::Created, &None));

    backend.start(id).await.unwrap();
    backend.start(id).await.unwrap();
    answers(backend, id).await;
    let first_start = backend.inspect(id).await.unwrap().unwrap();
    assert!(first_start.is_running() && first_start.started.is_some());
    assert!(backend.list().await.unwrap().iter().any(|(found, _)| *found == id));

    for _ in 0..2 {
        backend.stop(id).await.unwrap();
        let ended = life(backend, id).await;
        assert!(matches!(ended, Some(Lifecycle::Ended { exit_code: Some(_), .. })), "{ended:?}");
    }
    backend.start(id).await.unwrap();
    answers(backend, id).await;
    let second_start = backend.inspect(id).await.unwrap().unwrap();
    assert_ne!(first_start.started, second_start.started);

    match order.spec.backend() {
        BackendKind::Docker => freezing_and_resizing(backend, &order).await,
        BackendKind::Qemu => refusing_while_it_runs(backend, &order).await,
    }
    snapshots(backend, &order).await;

    for _ in 0..2 {
        backend.remove(id).await.unwrap();
        assert_eq!(life(backend, id).await, None);
    }
    for _ in 0..2 {
        backend.delete_all_snapshots(id).await.unwrap();
        assert_eq!(backend.list_snapshots(id).await.unwrap(), []);
    }
    let told = tokio::time::timeout(Duration::from_secs(5), events.next()).await;
    assert!(matches!(told, Ok(Some(Change::Everything | Change::Instance(_)))) || told.is_err());
}

/// From running, and ends ended.
async fn freezing_and_resizing(backend: &dyn Backend, order: &Order) {
    let id = order.task_id;
    for _ in 0..2 {
        backend.pause(id).await.unwrap();
        assert!(matches!(life(backend, id).await, Some(Lifecycle::Paused { .. })));
    }
    let mut spec = order.spec.clone();
    (spec.cores, spec.memory_bytes, spec.pids_limit) = (1, Some(128 << 20), 200);
    for _ in 0..2 {
        backend.resize(id, &spec).await.unwrap();
        let found = backend.inspect(id).await.unwrap().unwrap();
        assert_eq!(found.limits, backend.limits(&spec));
    }
    for _ in 0..2 {
        backend.resume(id).await.unwrap();
        assert!(matches!(life(backend, id).await, Some(Lifecycle::Running { .. })));
    }
    // Back to no limit at all.
    backend.resize(id, &order.spec).await.unwrap();
    let found = backend.inspect(id).await.unwrap().unwrap();
    assert_eq!((found.limits, found.oom), (backend.limits(&order.spec), false));
    for _ in 0..2 {
        backend.kill(id).await.unwrap();
        let ended = life(backend, id).await;
        assert!(matches!(ended, Some(Lifecycle::Ended { exit_code: Some(137), .. })), "{ended:?}");
        backend.pause(id).await.unwrap();
        backend.resume(id).await.unwrap();
    }
}

/// Checks what a VM refuses while it runs. Starts with it running and leaves it ended.
async fn refusing_while_it_runs(backend: &dyn Backend, order: &Order) {
    let id = order.task_id;
    let mut spec = order.spec.clone();
    (spec.cores, spec.memory_bytes) = (2, Some(192 << 20));
    for refused in
        [backend.pause(id).await, backend.resume(id).await, backend.resize(id, &spec).await]
    {
        assert!(matches!(refused, Err(BackendError::Refused { .. })), "{refused:?}");
    }
    for _ in 0..2 {
        backend.kill(id).await.unwrap();
        let ended = life(backend, id).await;
        assert!(matches!(ended, Some(Lifecycle::Ended { exit_code: Some(137), .. })), "{ended:?}");
        backend.pause(id).await.unwrap();
    }
    for spec in [&spec, &spec, &order.spec] {
        backend.resize(id, spec).await.unwrap();
        let found = backend.inspect(id).await.unwrap().unwrap();
        assert_eq!((found.limits, found.oom), (backend.limits(spec), false));
    }
}

/// From ended, and ends running on the disk of a snapshot.
async fn snapshots(backend: &dyn Backend, order: &Order) {
    let id = order.task_id;
    let wish = SnapshotSpec { name: Some("first".to_owned()), message: "a \"b\" $c".to_owned() };
    let first = backend.create_snapshot(id, &wish, 0).await.unwrap();
    assert_eq!((first.name.as_deref(), first.message.as_str()), (Some("first"), "a \"b\" $c"));
    let second = backend.create_snapshot(id, &SnapshotSpec::default(), 0).await.unwrap();
    let third = backend.create_snapshot(id, &SnapshotSpec::default(), 2).await.unwrap();
    let tags = async || -> Vec<u64> {
        backend.list_snapshots(id).await.unwrap().iter().map(|snapshot| snapshot.tag).collect()
    };
    assert_eq!(tags().await, [third.tag, second.tag], "the oldest beyond two is gone");
    let missing = backend.delete_snapshot(id, first.tag).await;
    assert!(matches!(missing, Err(BackendError::SnapshotNotFound { .. })), "{missing:?}");

    let mut restored = order.clone();
    restored.intent = restored.intent.restore();
    restored.spec.snapshot = Some(SnapshotRef { task_id: id, tag: first.tag });
    let missing = backend.prepare(&restored, &|_, _| {}).await;
    assert!(matches!(missing, Err(BackendError::SnapshotNotFound { .. })), "{missing:?}");
    restored.spec.snapshot = Some(SnapshotRef { task_id: id, tag: third.tag });
    let image = backend.prepare(&restored, &|_, _| {}).await.unwrap();
    backend.remove(id).await.unwrap();
    backend.create(&restored, &image).await.unwrap();
    let found = backend.inspect(id).await.unwrap().unwrap();
    assert_eq!((found.life, found.disk), (Lifecycle::Created, restored.intent.disk_generation));
    backend.start(id).await.unwrap();
    answers(backend, id).await;
    backend.delete_snapshot(id, second.tag).await.unwrap();
    assert_eq!(tags().await, [third.tag]);
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path().join("data"), dir.path().join("shared"));
    contract(&*FakeBackend::new(layout.clone()), &layout, fresh_order(IMAGE)).await;
}

#[tokio::test]
async fn docker_keeps_the_contract() {
    let node = Node::new();
    node.install();
    contract(&node.backend, &node.layout, fresh_order(IMAGE)).await;
}

#[tokio::test]
async fn docker_tells_when_an_instance_ends_by_itself() {
    let node = Node::new();
    node.install();
    let order = fresh_order("kohakuriver-test/scratch:latest");
    agent_files::write_instance_files(&node.layout, &order).unwrap();
    let image = node.backend.prepare(&order, &|_, _| {}).await.unwrap();
    node.backend.create(&order, &image).await.unwrap();
    node.backend.start(order.task_id).await.unwrap();
    answers(&node.backend, order.task_id).await;
    let mut events = node.backend.events();
    assert_eq!(events.next().await, Some(Change::Everything));
    let die = kohakuriver_runner_link::protocol::StreamTarget::Tcp { port: 3 };
    let agent = node.backend.agent(order.task_id).unwrap();
    let _ = agent_stream::open(&agent, &die).await;
    let told = async {
        loop {
            assert_eq!(events.next().await, Some(Change::Instance(order.task_id)));
            if !node.backend.inspect(order.task_id).await.unwrap().unwrap().is_running() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("it was told");
    let ended = life(&node.backend, order.task_id).await;
    assert!(matches!(ended, Some(Lifecycle::Ended { exit_code: Some(3), .. })), "{ended:?}");
}

/// Runs a command inside; how it ends is not the question.
fn inside(id: InstanceId, command: &str) {
    let name = format!("kohakuriver-vps-{id}");
    let status = Command::new("docker").args(["exec", &name, "/bin/sh", "-c", command]).output();
    status.unwrap();
}

async fn running(node: &Node, order: &Order) {
    agent_files::write_instance_files(&node.layout, order).unwrap();
    let image = node.backend.prepare(order, &|_, _| {}).await.unwrap();
    node.backend.create(order, &image).await.unwrap();
    node.backend.start(order.task_id).await.unwrap();
    answers(&node.backend, order.task_id).await;
}

#[tokio::test]
async fn docker_tells_that_the_kernel_killed_for_lack_of_memory() {
    let node = Node::new();
    node.install();
    let mut order = fresh_order(IMAGE);
    order.spec.memory_bytes = Some(48 << 20);
    running(&node, &order).await;
    let id = order.task_id;
    let mut events = node.backend.events();
    assert_eq!(events.next().await, Some(Change::Everything));
    inside(id, "dd if=/dev/zero of=/dev/null bs=200M count=1");
    let noticed = async {
        loop {
            events.next().await;
            if node.backend.inspect(id).await.unwrap().unwrap().oom {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, noticed).await.expect("it was noticed");
    let found = node.backend.inspect(id).await.unwrap().unwrap();
    assert!(found.is_running(), "only the hungry process is gone: {found:?}");
    node.backend.kill(id).await.unwrap();
    assert!(node.backend.inspect(id).await.unwrap().unwrap().oom, "it is still known at the end");
    node.backend.start(id).await.unwrap();
    answers(&node.backend, id).await;
    assert!(!node.backend.inspect(id).await.unwrap().unwrap().oom, "a new start is a new count");
}

#[tokio::test]
async fn a_chain_of_snapshots_is_flattened_and_loses_nothing() {
    let node = Node::new();
    node.install();
    let mut order = fresh_order(IMAGE);
    let id = order.task_id;
    let mut most = 0;
    for round in 0..11 {
        running(&node, &order).await;
        inside(id, &format!("echo {round} >>/root/rounds"));
        let made = node.backend.create_snapshot(id, &SnapshotSpec::default(), 2).await.unwrap();
        let name = format!("kohakuriver-snapshot/vps-{id}:{}", made.tag);
        let inspect = ["inspect", "--format", "{{len .RootFS.Layers}}", &name];
        let layers = Command::new("docker").args(inspect).output().unwrap();
        most = most.max(String::from_utf8_lossy(&layers.stdout).trim().parse::<u32>().unwrap());
        node.backend.remove(id).await.unwrap();
        order.intent = order.intent.restore();
        order.spec.snapshot = Some(SnapshotRef { task_id: id, tag: made.tag });
    }
    assert!(most <= 9, "{most} layers");
    running(&node, &order).await;
    let name = format!("kohakuriver-vps-{id}");
    let read = ["exec", &name, "/bin/sh", "-c", "tr '\n' ' ' </root/rounds"];
    let read = Command::new("docker").args(read).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&read.stdout), "0 1 2 3 4 5 6 7 8 9 10 ");
    assert!(node.backend.list_snapshots(id).await.unwrap()[0].in_use);
    node.backend.remove(id).await.unwrap();
    node.backend.delete_all_snapshots(id).await.unwrap();
    assert_eq!(node.backend.list_snapshots(id).await.unwrap(), []);
}

#[tokio::test]
async fn docker_gives_a_container_exactly_what_was_ordered() {
    let node = Node::new();
    node.install();
    let mut order = fresh_order(IMAGE);
    order.spec.name = Some("web".parse().unwrap());
    order.spec.cores = 1;
    order.spec.memory_bytes = Some(64 << 20);
    order.spec.env =
        [("A".to_owned(), "b c".to_owned()), ("BAD KEY".to_owned(), "x".to_owned())].into();
    agent_files::write_instance_files(&node.layout, &order).unwrap();
    let image = node.backend.prepare(&order, &|_, _| {}).await.unwrap();
    node.backend.create(&order, &image).await.unwrap();
    let name = format!("kohakuriver-vps-{}", order.task_id);
    let output = Command::new("docker").args(["inspect", &name]).output().unwrap();
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let (config, host) = (&seen[0]["Config"], &seen[0]["HostConfig"]);
    assert_eq!(config["Hostname"], "web");
    assert_eq!(config["User"], "0:0");
    assert_eq!(config["Labels"]["kohakuriver.task_id"], order.task_id.to_string());
    let env = config["Env"].to_string();
    assert!(env.contains("A=b c") && env.contains("KOHAKURIVER_TASK_ID") && !env.contains("BAD"));
    assert_eq!(host["NanoCpus"], 1_000_000_000);
    assert_eq!((&host["Memory"], &host["MemorySwap"]), (&(64 << 20).into(), &(64 << 20).into()));
    assert_eq!((&host["PidsLimit"], &host["ShmSize"]), (&100.into(), &(32 << 20).into()));
    assert_eq!(host["Privileged"], false);
    assert!(host["PortBindings"].as_object().is_none_or(serde_json::Map::is_empty));
    let mounts = seen[0]["Mounts"].as_array().unwrap();
    let writable = |target: &str| {
        mounts.iter().find(|mount| mount["Destination"] == target).map(|mount| mount["RW"] == true)
    };
    assert_eq!(writable("/.kohakuriver/bin"), Some(false));
    assert_eq!(writable("/.kohakuriver/etc"), Some(false));
    assert_eq!(writable("/.kohakuriver/run"), Some(true));
    assert_eq!(writable("/shared"), Some(true));
    assert_eq!(writable("/etc/hosts"), Some(true));
    assert_eq!(mounts.len(), 7);
}

/// An engine of words: says which version it is, takes a create, and keeps what it was sent.
fn recording_engine(socket: &std::path::Path) -> tokio::task::JoinHandle<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            loop {
                let mut part = [0; 4096];
                let count = stream.read(&mut part).await.unwrap();
                request.extend_from_slice(&part[..count]);
                let text = String::from_utf8_lossy(&request).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head
                    .lines()
                    .find_map(|line| {
                        line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok()
                    })
                    .unwrap_or(0);
                if body.len() < length {
                    continue;
                }
                let create = head.contains("/containers/create");
                let answer = if create {
                    "{\"Id\":\"1\",\"Warnings\":[]}"
                } else if head.contains("/networks/") {
                    NETWORK
                } else {
                    "{\"Version\":\"20.10\",\"ApiVersion\":\"1.41\",\"MinAPIVersion\":\"1.12\"}"
                };
                let (code, length) = (if create { "201 Created" } else { "200 OK" }, answer.len());
                let head = format!(
                    "HTTP/1.1 {code}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
                );
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
                if create {
                    return body.to_owned();
                }
                break;
            }
        }
    })
}

/// As the engine tells of the network of [`containers`].
const NETWORK: &str = r#"{"Name":"krtest-contract","Id":"1","Driver":"bridge",
    "Options":{"com.docker.network.bridge.name":"krtest-contract",
    "com.docker.network.bridge.enable_icc":"false"},"Labels":{"kohakuriver.managed":"true"}}"#;

#[tokio::test]
async fn the_engine_is_really_asked_for_the_cards_and_the_numa_node() {
    let node = Node::new();
    let socket = node.dir.path().join("engine.sock");
    let engine = recording_engine(&socket);
    let backend = DockerBackend::new(DockerConfig {
        layout: node.layout.clone(),
        node: node.name.parse().unwrap(),
        socket: Some(socket),
        stop_grace: Duration::from_secs(1),
        containers: containers(),
    });
    let mut order = fresh_order(IMAGE);
    let gpu = |index, uuid: &str| GpuRef { index, uuid: uuid.to_owned() };
    order.spec.gpus = vec![gpu(0, "GPU-5c1b7f7e"), gpu(3, "GPU-0f6f0c54")];
    order.spec.numa = Some(NumaPin { node: 1, cpus: vec![8, 9, 10, 11] });
    agent_files::write_instance_files(&node.layout, &order).unwrap();
    backend.create(&order, "sha256:1").await.unwrap();
    let sent: serde_json::Value = serde_json::from_str(&engine.await.unwrap()).unwrap();
    let host = &sent["HostConfig"];
    let cards = serde_json::json!([
        {"DeviceIDs": ["GPU-5c1b7f7e", "GPU-0f6f0c54"], "Capabilities": [["gpu"]]}
    ]);
    assert_eq!(host["DeviceRequests"], cards);
    assert_eq!((&host["CpusetCpus"], &host["CpusetMems"]), (&"8-11".into(), &"1".into()));
}

#[tokio::test]
async fn gpu_without_engine_support_is_refused_with_install_hint() {
    let node = Node::new();
    node.install();
    let mut order = fresh_order(IMAGE);
    order.spec.gpus = vec![GpuRef { index: 0, uuid: "GPU-none".to_owned() }];
    agent_files::write_instance_files(&node.layout, &order).unwrap();
    let image = node.backend.prepare(&order, &|_, _| {}).await.unwrap();
    node.backend.create(&order, &image).await.unwrap();
    let refused = node.backend.start(order.task_id).await.unwrap_err();
    assert_eq!(refused.code(), FailureCode::GpuUnavailable, "{refused}");
    assert!(refused.hint().is_some_and(|hint| hint.contains("nvidia-container-toolkit")));
}

#[tokio::test]
async fn environments_are_loaded_once_from_either_kind_of_tarball() {
    let node = Node::new();
    let dir = node.layout.environments();
    std::fs::create_dir_all(&dir).unwrap();
    let save = |file: &str| {
        let path = dir.join(file);
        let saved = Command::new("docker").args(["save", "-o"]).arg(path).arg(IMAGE).status();
        assert!(saved.unwrap().success());
    };
    // A name per run: the engine's images are shared with other tests.
    let name = format!("env{}", fresh_id());
    let _tag = Tag(format!("kohakuriver/{name}:base"));
    let mut order = fresh_order(IMAGE);
    order.spec.image = ImageSource::Environment { name: name.clone() };
    let missing = node.backend.prepare(&order, &|_, _| {}).await.unwrap_err();
    assert_eq!(missing.code(), FailureCode::EnvironmentNotFound);

    save(&format!("{name}-1.tar"));
    let steps = std::sync::Mutex::new(Vec::new());
    let note = |step: String, _| steps.lock().unwrap().push(step);
    let loaded = node.backend.prepare(&order, &note).await.unwrap();
    assert!(!steps.lock().unwrap().is_empty());
    steps.lock().unwrap().clear();
    assert_eq!(node.backend.prepare(&order, &note).await.unwrap(), loaded);
    assert!(steps.lock().unwrap().is_empty(), "it was loaded again");

    let root = super::docker::pack_tar(&[("etc/hostname", b"x"), ("bin/x", b"y")]);
    std::fs::write(dir.join(format!("{name}-2.tar")), root).unwrap();
    let imported = node.backend.prepare(&order, &note).await.unwrap();
    assert_ne!(imported, loaded);
    order.spec.image = ImageSource::Environment { name: "other".to_owned() };
    let missing = node.backend.prepare(&order, &note).await.unwrap_err().to_string();
    assert!(missing.contains(&name), "{missing}");
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_unavailable_with_a_hint() {
    let node = Node::new();
    let backend = DockerBackend::new(DockerConfig {
        layout: node.layout.clone(),
        node: node.name.parse().unwrap(),
        socket: Some(node.dir.path().join("none.sock")),
        stop_grace: Duration::from_secs(1),
        containers: containers(),
    });
    let error = backend.inspect(fresh_id()).await.unwrap_err();
    assert_eq!(error.code(), FailureCode::EngineUnavailable);
    assert!(error.is_engine_away() && error.hint().is_some_and(|hint| hint.contains("start")));
    let mut seen = Inventory::of(1, 1, DockerState::Ready { version: String::new() });
    backend.describe(&mut seen).await;
    let state = format!("{:?}", seen.docker);
    assert!(state.contains("Unavailable") && state.contains("systemctl start docker"), "{state}");
}
