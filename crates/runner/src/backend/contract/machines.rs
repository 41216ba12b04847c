//! The contract on real machines, and what only machines do. The guest is the tests' small one,
//! which `scripts/vm-micro-image.sh` makes.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use kohakuriver_agent_protocol::exec::{ExecExit, ExecInput, ExecOutput, ExecStart, Word};
use kohakuriver_agent_protocol::{FrameReader, write};
use kohakuriver_runner_link::protocol::StreamTarget;
use kohakuriver_vm::accel::AccelWish;
use kohakuriver_vm::launch::Process;
use tokio::net::UnixStream;

use super::*;
use crate::backend::qemu::{MachineSettings, QemuBackend, QemuConfig};

/// A QEMU backend of its own; its machines go with it.
struct MachineNode {
    _dir: tempfile::TempDir,
    layout: Layout,
    /// Tells its network from those of the other tests.
    number: u8,
    backend: QemuBackend,
}

impl MachineNode {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("data"), dir.path().join("shared"));
        link_images(&layout.vm_images());
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        let backend = backend(&layout, number).await;
        Self { _dir: dir, layout, number, backend }
    }

    /// Another runner on the same machine, as after a kill -9.
    async fn restart(&mut self) {
        self.backend.leave();
        tokio::task::yield_now().await;
        self.backend = backend(&self.layout, self.number).await;
    }

    fn process(&self, id: InstanceId) -> Process {
        Process::recorded(&self.disk_dir(id).join("started")).unwrap()
    }

    fn disk_dir(&self, id: InstanceId) -> PathBuf {
        self.layout.machines_dir().join("disks").join(id.to_string())
    }
}

impl Drop for MachineNode {
    fn drop(&mut self) {
        let disks = fs::read_dir(self.layout.machines_dir().join("disks"));
        for entry in disks.into_iter().flatten().flatten() {
            if let Some(process) = Process::recorded(&entry.path().join("started")) {
                process.kill();
            }
        }
        let _ = Command::new("ip").args(["link", "del", &bridge(self.number)]).output();
        let _ =
            Command::new("nft").args(["delete", "table", "inet", &bridge(self.number)]).output();
    }
}

static NODES: AtomicU8 = AtomicU8::new(1);

fn bridge(number: u8) -> String {
    format!("krtest{number}")
}

async fn backend(layout: &Layout, number: u8) -> QemuBackend {
    let settings = MachineSettings {
        bridge: bridge(number).parse().unwrap(),
        subnet: format!("10.213.{number}.0/24").parse().unwrap(),
        accel: AccelWish::Tcg,
        stop_grace: Duration::from_secs(20),
        ..MachineSettings::default()
    };
    let executable = example("machine_roles");
    let backend = QemuBackend::new(QemuConfig { layout: layout.clone(), executable, settings });
    backend.adopt().await;
    backend
}

fn link_images(store: &Path) {
    let tests = std::env::current_exe().unwrap();
    let made = tests.ancestors().nth(4).unwrap().join("vm-images/micro");
    assert!(made.exists(), "no {}: run scripts/vm-micro-image.sh target/vm-images", made.display());
    fs::create_dir_all(store.join("micro")).unwrap();
    for file in fs::read_dir(made).unwrap() {
        let file = file.unwrap();
        fs::hard_link(file.path(), store.join("micro").join(file.file_name())).unwrap();
    }
}

fn machine() -> Order {
    let mut order = fresh_order(IMAGE);
    order.spec.image = ImageSource::VmImage { name: "micro".parse().unwrap() };
    order.spec.memory_bytes = Some(160 << 20);
    order.spec.cores = 1;
    order.spec.vm_disk_bytes = Some(1 << 30);
    order
}

async fn running(node: &MachineNode, order: &Order) {
    agent_files::write_instance_files(&node.layout, order).unwrap();
    let image = node.backend.prepare(order, &|_, _| {}).await.unwrap();
    node.backend.create(order, &image).await.unwrap();
    node.backend.start(order.task_id).await.unwrap();
    answers(&node.backend, order.task_id).await;
}

/// Runs a command in the guest and returns its output.
async fn said(node: &MachineNode, id: InstanceId, argv: &[&str]) -> String {
    let agent = node.backend.agent(id).unwrap();
    let stream = agent_stream::open(&agent, &StreamTarget::Exec).await.unwrap();
    let (read, mut writer) = tokio::io::split(stream);
    let argv = argv.iter().map(|word| Word::from(*word)).collect();
    let start = ExecInput::Start(ExecStart { argv, ..ExecStart::default() });
    write(&mut writer, &start).await.unwrap();
    let mut reader = FrameReader::<_, ExecOutput>::new(read, &[]);
    let mut text = Vec::new();
    loop {
        match reader.next().await.unwrap().unwrap() {
            ExecOutput::Stdout(piece) => text.extend_from_slice(&piece),
            ExecOutput::Exit(ExecExit::Code(0)) => return String::from_utf8(text).unwrap(),
            ExecOutput::StdinTaken(_) => {}
            other @ (ExecOutput::Stderr(_) | ExecOutput::Exit(_) | ExecOutput::Failed(_)) => {
                panic!("{other:?}")
            }
        }
    }
}

#[tokio::test]
async fn machines_keep_the_contract() {
    let node = MachineNode::new().await;
    contract(&node.backend, &node.layout, machine()).await;
    let left: Vec<_> = fs::read_dir(node.layout.machines_dir().join("disks")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn running_vm_is_adopted_by_the_next_runner_with_its_exit() {
    let mut node = MachineNode::new().await;
    let order = machine();
    let id = order.task_id;
    running(&node, &order).await;
    let (before, started) = (node.process(id), node.backend.inspect(id).await.unwrap().unwrap());
    node.restart().await;
    let found = node.backend.inspect(id).await.unwrap().unwrap();
    assert_eq!((found.life, found.started), (started.life, started.started));
    assert_eq!(node.process(id), before, "it was not started again");
    answers(&node.backend, id).await;

    // The next runner hears of its end, and how it came.
    let mut events = node.backend.events();
    assert_eq!(events.next().await, Some(Change::Everything));
    let agent = node.backend.agent(id).unwrap();
    let mut stream = agent_stream::open(&agent, &StreamTarget::Exec).await.unwrap();
    let off = ExecStart { argv: vec![Word::from("poweroff")], ..ExecStart::default() };
    write(&mut stream, &ExecInput::Start(off)).await.unwrap();
    let told = tokio::time::timeout(PATIENCE, events.next()).await;
    assert_eq!(told.expect("the end is reported"), Some(Change::Instance(id)));
    let ended = life(&node.backend, id).await;
    assert!(matches!(ended, Some(Lifecycle::Ended { exit_code: Some(0), .. })), "{ended:?}");
    assert!(!before.is_alive(), "nothing is left of it");
}

#[tokio::test]
async fn killed_qemu_is_noticed_by_its_runner() {
    let node = MachineNode::new().await;
    let order = machine();
    let id = order.task_id;
    running(&node, &order).await;
    let mut events = node.backend.events();
    assert_eq!(events.next().await, Some(Change::Everything));
    node.process(id).kill();
    let told = tokio::time::timeout(PATIENCE, events.next()).await;
    assert_eq!(told.expect("the end is reported"), Some(Change::Instance(id)));
    let ended = life(&node.backend, id).await;
    assert!(matches!(ended, Some(Lifecycle::Ended { exit_code: Some(137), .. })), "{ended:?}");
}

#[tokio::test]
async fn live_snapshot_saves_the_disk_and_vm_runs_on() {
    let node = MachineNode::new().await;
    let mut order = machine();
    let id = order.task_id;
    running(&node, &order).await;
    let put = |text: &str| format!("echo {text} >/root/x; sync");
    said(&node, id, &["sh", "-c", &put("one")]).await;
    let first = node.backend.create_snapshot(id, &SnapshotSpec::default(), 0).await.unwrap();
    said(&node, id, &["sh", "-c", &put("two")]).await;
    node.backend.create_snapshot(id, &SnapshotSpec::default(), 0).await.unwrap();
    said(&node, id, &["sh", "-c", &put("three")]).await;
    node.backend.stop(id).await.unwrap();
    node.backend.start(id).await.unwrap();
    answers(&node.backend, id).await;
    assert_eq!(said(&node, id, &["cat", "/root/x"]).await, "three\n");

    order.intent = order.intent.restore();
    order.spec.snapshot = Some(SnapshotRef { task_id: id, tag: first.tag });
    node.backend.remove(id).await.unwrap();
    running(&node, &order).await;
    assert_eq!(said(&node, id, &["cat", "/root/x"]).await, "one\n");
    assert!(node.backend.list_snapshots(id).await.unwrap()[1].in_use);
    let refused = node.backend.delete_snapshot(id, first.tag).await;
    assert!(matches!(refused, Err(BackendError::SnapshotInUse { .. })), "{refused:?}");
}

#[tokio::test]
async fn console_is_shared_and_has_a_backlog() {
    let node = MachineNode::new().await;
    let order = machine();
    running(&node, &order).await;
    let attach = async || {
        let (near, far) = UnixStream::pair().unwrap();
        let (backend, id) = (node.backend.clone(), order.task_id);
        tokio::spawn(async move { backend.attach(id, far).await });
        let (read, mut writer) = near.into_split();
        write(&mut writer, &ExecInput::Start(ExecStart::default())).await.unwrap();
        (FrameReader::<_, ExecOutput>::new(read, &[]), writer)
    };
    let (mut one, mut typing) = attach().await;
    let (mut two, _hold) = attach().await;
    let typed = ExecInput::Stdin("\necho on-$((40+2))-it\n".into());
    write(&mut typing, &typed).await.unwrap();
    for reader in [&mut one, &mut two] {
        let mut seen = String::new();
        while !seen.contains("on-42-it") {
            let next = tokio::time::timeout(PATIENCE, reader.next()).await;
            if let ExecOutput::Stdout(piece) =
                next.expect("the console printed it").unwrap().unwrap()
            {
                seen.push_str(&String::from_utf8_lossy(&piece));
            }
        }
    }
    // QEMU writes its log after it has told us.
    let written = async {
        while !node.backend.log_tail(order.task_id).await.contains("on-42-it") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.expect("it is in the log");
    let (mut late, _hold) = attach().await;
    let Ok(Some(ExecOutput::Stdout(piece))) = late.next().await else { panic!("no backlog") };
    assert!(String::from_utf8_lossy(&piece).contains("on-42-it"));
}

#[tokio::test]
async fn start_that_qemu_refuses_has_reason_and_leaves_nothing() {
    let node = MachineNode::new().await;
    let order = machine();
    let id = order.task_id;
    agent_files::write_instance_files(&node.layout, &order).unwrap();
    let image = node.backend.prepare(&order, &|_, _| {}).await.unwrap();
    node.backend.create(&order, &image).await.unwrap();
    let disk = node.disk_dir(id).join("disk.qcow2");
    let whole = fs::read(&disk).unwrap();
    fs::write(&disk, b"nonsense").unwrap();
    let refused = node.backend.start(id).await.unwrap_err();
    assert!(refused.to_string().contains("not in qcow2 format"), "{refused}");
    assert!(!node.disk_dir(id).join("seed.img").exists());
    fs::write(&disk, whole).unwrap();
    node.backend.start(id).await.unwrap();
    answers(&node.backend, id).await;
}

#[tokio::test]
async fn impossible_vm_is_refused_before_anything_is_created() {
    let node = MachineNode::new().await;
    let mut order = machine();
    order.spec.image = ImageSource::VmImage { name: "nowhere".parse().unwrap() };
    let missing = node.backend.prepare(&order, &|_, _| {}).await.unwrap_err();
    assert_eq!(missing.code(), FailureCode::ImageUnavailable);
    assert!(missing.to_string().contains("micro"), "existing images are listed: {missing}");
    let mut order = machine();
    order.spec.vm_disk_bytes = Some(1 << 20);
    agent_files::write_instance_files(&node.layout, &order).unwrap();
    let image = node.backend.prepare(&order, &|_, _| {}).await.unwrap();
    let small = node.backend.create(&order, &image).await.unwrap_err();
    assert!(small.to_string().contains("can only be larger"), "{small}");
    assert_eq!(life(&node.backend, order.task_id).await, None);
}

#[tokio::test]
async fn silent_qemu_can_be_killed_and_leaves_nothing() {
    let mut node = MachineNode::new().await;
    let order = machine();
    let id = order.task_id;
    running(&node, &order).await;
    let process = node.process(id);
    let pid = nix::unistd::Pid::from_raw(process.pid);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    node.restart().await;
    assert!(node.backend.inspect(id).await.unwrap().unwrap().is_running());
    let refused = node.backend.create_snapshot(id, &SnapshotSpec::default(), 0).await;
    assert!(refused.is_err(), "what may be written is not taken for what rests");
    node.backend.kill(id).await.unwrap();
    assert!(!process.is_alive());
    let ended = life(&node.backend, id).await;
    assert!(matches!(ended, Some(Lifecycle::Ended { exit_code: Some(137), .. })), "{ended:?}");

    // The reattaching task of the old process leaves the next one alone.
    node.backend.start(id).await.unwrap();
    answers(&node.backend, id).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    said(&node, id, &["true"]).await;
    node.backend.stop(id).await.unwrap();
    let ended = life(&node.backend, id).await;
    assert!(matches!(ended, Some(Lifecycle::Ended { exit_code: Some(0), .. })), "{ended:?}");
    node.backend.remove(id).await.unwrap();
    assert!(!node.disk_dir(id).exists());
}

#[tokio::test]
async fn abandoned_restore_leaves_no_layer() {
    let node = MachineNode::new().await;
    let mut order = machine();
    let id = order.task_id;
    agent_files::write_instance_files(&node.layout, &order).unwrap();
    let image = node.backend.prepare(&order, &|_, _| {}).await.unwrap();
    node.backend.create(&order, &image).await.unwrap();
    let saved = node.backend.create_snapshot(id, &SnapshotSpec::default(), 0).await.unwrap();
    order.spec.snapshot = Some(SnapshotRef { task_id: id, tag: saved.tag });
    let layer = node.backend.prepare(&order, &|_, _| {}).await.unwrap();
    let layer = node.layout.machines_dir().join("layers").join(layer);
    // The old disk is given up, and then the machine.
    node.backend.remove(id).await.unwrap();
    assert!(layer.exists());
    node.backend.delete_all_snapshots(id).await.unwrap();
    assert!(!layer.exists());
}

#[tokio::test]
async fn often_snapshotted_disk_is_flattened_without_loss() {
    let node = MachineNode::new().await;
    let order = machine();
    let id = order.task_id;
    running(&node, &order).await;
    for round in 0..10 {
        let write = format!("echo {round} >>/root/rounds; sync");
        said(&node, id, &["sh", "-c", &write]).await;
        node.backend.create_snapshot(id, &SnapshotSpec::default(), 2).await.unwrap();
    }
    node.backend.stop(id).await.unwrap();
    node.backend.start(id).await.unwrap();
    answers(&node.backend, id).await;
    assert_eq!(
        said(&node, id, &["sh", "-c", "tr '\\n' ' ' </root/rounds"]).await,
        "0 1 2 3 4 5 6 7 8 9 "
    );
    let layers = fs::read_dir(node.layout.machines_dir().join("layers")).unwrap().count();
    // The oldest of the two snapshots still has its chain.
    assert!(layers >= 3, "{layers}");
    let tags = node.backend.list_snapshots(id).await.unwrap();
    for snapshot in tags {
        node.backend.delete_snapshot(id, snapshot.tag).await.unwrap();
    }
    let layers = fs::read_dir(node.layout.machines_dir().join("layers")).unwrap().count();
    assert_eq!(layers, 1, "only the image's is left");
    assert!(said(&node, id, &["cat", "/root/rounds"]).await.ends_with("9\n"));
}

#[tokio::test]
async fn leftovers_of_interrupted_removals_and_creates_are_removed() {
    let mut node = MachineNode::new().await;
    let order = machine();
    running(&node, &order).await;
    let disks = node.layout.machines_dir().join("disks");
    fs::create_dir(disks.join(".gone-7")).unwrap();
    fs::create_dir(disks.join(fresh_id().to_string())).unwrap();
    fs::create_dir_all(node.layout.machines_dir().join("snapshots/7")).unwrap();
    fs::write(node.layout.machines_dir().join("snapshots/7/.5.json.new"), b"{").unwrap();
    node.restart().await;
    assert_eq!(fs::read_dir(&disks).unwrap().count(), 1, "the living one's");
    node.backend.remove(order.task_id).await.unwrap();
    assert_eq!(node.backend.list().await.unwrap(), []);
}
