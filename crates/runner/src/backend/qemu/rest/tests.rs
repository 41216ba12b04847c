//! Real disks and qemu-img: any two acts, the first cut at any change of files. At rest there is
//! what records name, all of what they name, and nothing else.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use futures_util::StreamExt;
use kohakuriver_model::{ImageSource, Intent, SnapshotRef};
use kohakuriver_runner_link::protocol::Order;

use super::*;
use crate::backend::qemu::{MachineSettings, QemuConfig};
use crate::backend::{Backend, SnapshotSpec};
use crate::layout::Layout;
use crate::plan::tests::order;

const ID: InstanceId = InstanceId::from_u64(7);
const NODES_AT_ONCE: usize = 4;
/// On the disk when the first snapshot was made, and since.
const SAVED: &str = "0x62";
const NOW: &str = "0x63";

struct Node {
    dir: tempfile::TempDir,
    backend: QemuBackend,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Create,
    Snapshot,
    DeleteSnapshot,
    Restore,
    Start,
    Delete,
}

/// How the first act is cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// It fails, and the same runner goes on.
    Failed,
    /// The runner dies, and the next one takes up what there is.
    Crash,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    has_machine: bool,
    first: Act,
    second: Act,
    cut: Cut,
}

fn layout(dir: &Path) -> Layout {
    Layout::new(dir.join("data"), dir.join("shared"))
}

fn backend(layout: Layout) -> QemuBackend {
    // Nothing is started here, so nothing has a network.
    let config = QemuConfig {
        layout,
        executable: "/bin/false".into(),
        settings: MachineSettings::default(),
    };
    QemuBackend::without_bridge(config)
}

fn run(program: &str, args: &[&str], dir: &Path) -> String {
    let output = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Node {
    /// With an image of one mebibyte.
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let image = layout(dir.path()).vm_images().join("tiny");
        fs::create_dir_all(&image).unwrap();
        run("qemu-img", &["create", "-q", "-f", "qcow2", "disk.qcow2", "1M"], &image);
        let bytes = fs::metadata(image.join("disk.qcow2")).unwrap().len();
        let meta = serde_json::json!({
            "sha256": "00", "disk_bytes": bytes, "virtual_bytes": 1 << 20, "agent": true
        });
        fs::write(image.join("image.json"), meta.to_string()).unwrap();
        let backend = backend(layout(dir.path()));
        Self { dir, backend }
    }

    /// A machine with a snapshot, and something written since.
    async fn with_machine() -> Self {
        let node = Self::new();
        node.perform(Act::Create).await.unwrap();
        node.write(SAVED);
        node.perform(Act::Snapshot).await.unwrap();
        node.write(NOW);
        node
    }

    /// The same again, with files of its own.
    fn copy(&self) -> Self {
        let dir = tempfile::tempdir_in(self.dir.path().parent().unwrap()).unwrap();
        run("cp", &["-a", &format!("{}/.", self.dir.path().display()), "."], dir.path());
        let backend = backend(layout(dir.path()));
        Self { dir, backend }
    }

    async fn crash(&mut self) {
        self.backend.leave();
        self.backend = backend(layout(self.dir.path()));
        self.backend.adopt().await;
    }

    fn write(&self, pattern: &str) {
        let disk = self.backend.dir(ID).machine().unwrap().unwrap().disk;
        let write = format!("write -P {pattern} 0 64k");
        run("qemu-io", &["-c", &write, &disk], self.backend.dir(ID).path());
    }

    fn tags(&self) -> Vec<u64> {
        let dir = self.backend.shared.disks.root().join("snapshots").join(ID.to_string());
        let names = names(&dir).into_iter();
        let mut tags: Vec<u64> =
            names.filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect();
        tags.sort_unstable();
        tags
    }

    fn order(&self, snapshot: Option<u64>) -> Order {
        let mut order = order(Intent::created());
        order.spec.image = ImageSource::VmImage { name: "tiny".parse().unwrap() };
        order.spec.vm_disk_bytes = Some(1 << 20);
        if let Some(tag) = snapshot {
            order.intent = order.intent.restore();
            order.spec.snapshot = Some(SnapshotRef { task_id: ID, tag });
        }
        order
    }

    async fn make(&self, order: &Order) -> Result<(), BackendError> {
        fs::create_dir_all(layout(self.dir.path()).etc(ID)).unwrap();
        let layer = self.backend.choose_layer(order, &|_, _| {}).await?;
        self.backend.make(order, &layer).await
    }

    /// Performs one operation of the driver.
    async fn perform(&self, act: Act) -> Result<(), BackendError> {
        let backend = &self.backend;
        match act {
            Act::Create => self.make(&self.order(None)).await,
            Act::Snapshot => {
                let wish = SnapshotSpec::default();
                backend.create_snapshot(ID, &wish, 2).await.map(drop)
            }
            Act::DeleteSnapshot => match self.tags().first() {
                Some(tag) => backend.delete_snapshot(ID, *tag).await,
                None => Ok(()),
            },
            Act::Restore => {
                let Some(tag) = self.tags().first().copied() else { return Ok(()) };
                let order = self.order(Some(tag));
                backend.choose_layer(&order, &|_, _| {}).await?;
                backend.remove(ID).await?;
                self.make(&order).await
            }
            Act::Start => {
                let dir = backend.dir(ID);
                match dir.machine().map_err(files)? {
                    Some(mut machine) => backend.ready_disk(&dir, &mut machine).await,
                    None => Ok(()),
                }
            }
            Act::Delete => {
                backend.remove(ID).await?;
                backend.delete_all_snapshots(ID).await?;
                backend.tidy(ID).await
            }
        }
    }

    /// Performs the work of driver and backend at rest.
    async fn rest(&self) {
        self.backend.tidy(ID).await.unwrap();
        self.backend.sweep().await;
    }

    /// Checks that nothing is left over and nothing is missing.
    fn fault(&self, written: bool) -> Result<(), String> {
        let (backend, disks) = (&self.backend, &self.backend.shared.disks);
        let mut tops = backend.snapshot_layers().unwrap();
        let dir = backend.dir(ID);
        let mut machines = Vec::new();
        if let Some(machine) = dir.machine().unwrap() {
            machines.push(ID.to_string());
            let due = BTreeSet::from([machine.disk.clone(), "machine.json".to_owned()]);
            let has: BTreeSet<String> = names(dir.path()).into_iter().collect();
            if has != due || machine.freezing.is_some() {
                return Err(format!("the machine has {has:?}, and {machine:?}"));
            }
            let pattern = if machine.origin.is_some() { SAVED } else { NOW };
            let read = format!("read -P {pattern} 0 64k");
            if written
                && run("qemu-io", &["-c", &read, &machine.disk], dir.path()).contains("failed")
            {
                return Err(format!("not {pattern} on its disk"));
            }
            tops.insert(machine.layer);
        }
        let mut due: BTreeSet<String> = names(&disks.layers_dir())
            .into_iter()
            .filter(|name| name.starts_with("image-"))
            .collect();
        for top in tops {
            due.extend(disks.chain(&top).map_err(|error| error.to_string())?);
        }
        let has: BTreeSet<String> = names(&disks.layers_dir()).into_iter().collect();
        if has != due {
            return Err(format!("layers {has:?}, not {due:?}"));
        }
        if names(&disks.disks_dir()) != machines {
            return Err(format!("disks {:?}", names(&disks.disks_dir())));
        }
        let promised = backend.promised().clone();
        if promised.is_empty() { Ok(()) } else { Err(format!("{promised:?} is promised")) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.backend.leave();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Cuts at this change; `false`: the act has fewer.
async fn cut_at(template: &Node, case: Case, change: u32) -> bool {
    let mut node = template.copy();
    let cut = node.backend.shared.disks.cut().clone();
    cut.after(change);
    let first = node.perform(case.first).await;
    let was_cut = cut.lift();
    // Collecting is tried again and says nothing to its caller.
    assert!(first.is_ok() || was_cut, "{case:?}, not cut: {first:?}");
    if matches!(case.cut, Cut::Crash) {
        node.crash().await;
    }
    match node.perform(case.second).await {
        // The first act has left nothing to do it to, or has done it.
        Err(
            BackendError::Refused { by: "QEMU", act: "save", .. }
            | BackendError::Refused { by: "the node", act: "create", .. }
            | BackendError::SnapshotInUse { .. },
        )
        | Ok(()) => {}
        Err(error) => panic!("{case:?}, cut at change {change}: {error}"),
    }
    node.rest().await;
    if let Err(fault) = node.fault(case.has_machine) {
        panic!("{case:?}, cut at change {change}: {fault}");
    }
    was_cut
}

#[tokio::test]
async fn disks_cut_at_any_change_are_what_their_records_say() {
    use Act::{Create, Delete, DeleteSnapshot, Restore, Snapshot, Start};
    let (bare, full) = (Node::new(), Node::with_machine().await);
    let mut cases = Vec::new();
    let pairs: [(bool, &[Act], &[Act]); 2] = [
        (false, &[Create], &[Create, Snapshot, Delete]),
        (
            true,
            &[Snapshot, DeleteSnapshot, Restore, Start, Delete],
            &[Snapshot, DeleteSnapshot, Restore, Start, Delete],
        ),
    ];
    for (has_machine, firsts, seconds) in pairs {
        for &first in firsts {
            for &second in seconds {
                for cut in [Cut::Failed, Cut::Crash] {
                    // Nothing follows a delete but the same again.
                    if first != Delete || second == Delete {
                        cases.push(Case { has_machine, first, second, cut });
                    }
                }
            }
        }
    }
    let (bare, full) = (&bare, &full);
    let played = futures_util::stream::iter(cases).map(|case| async move {
        let template = if case.has_machine { full } else { bare };
        let mut change = 0;
        while cut_at(template, case, change).await {
            change += 1;
        }
        change
    });
    let changes: Vec<u32> = played.buffer_unordered(NODES_AT_ONCE).collect().await;
    assert!(changes.iter().all(|changes| *changes > 0), "{changes:?}");
}

#[tokio::test]
async fn layer_of_superseded_restore_goes_with_its_snapshot() {
    let node = Node::with_machine().await;
    let tag = node.tags()[0];
    let layer = node.backend.choose_layer(&node.order(Some(tag)), &|_, _| {}).await.unwrap();
    node.backend.remove(ID).await.unwrap();
    // A stop came: the driver rests, and the disk is not made.
    node.backend.tidy(ID).await.unwrap();
    assert!(node.backend.shared.disks.layer(&layer).is_ok(), "its snapshot is still there");
    node.backend.delete_snapshot(ID, tag).await.unwrap();
    assert!(node.backend.shared.disks.layer(&layer).is_err());
}

#[tokio::test]
async fn layer_of_a_deleted_image_goes_at_the_next_sweep() {
    let node = Node::new();
    node.perform(Act::Create).await.unwrap();
    node.perform(Act::Delete).await.unwrap();
    let layers = node.backend.shared.disks.layers_dir();
    assert_eq!(names(&layers).len(), 1, "the image's own stays while there is the image");
    fs::create_dir(layers.join(".unfinished-image-of-before")).unwrap();
    fs::remove_dir_all(layout(node.dir.path()).vm_images().join("tiny")).unwrap();
    node.backend.sweep().await;
    assert_eq!(names(&layers), Vec::<String>::new());
}

#[tokio::test]
async fn traces_of_a_qemu_that_is_gone_are_removed_at_rest() {
    let node = Node::with_machine().await;
    let dir = node.backend.dir(ID);
    fs::write(dir.path().join(SEED), b"secret").unwrap();
    fs::create_dir(dir.path().join(RUN_DIR)).unwrap();
    fs::write(dir.path().join(RUN_DIR).join("console.log"), b"login:").unwrap();
    std::os::unix::net::UnixListener::bind(dir.path().join(RUN_DIR).join("qmp.sock")).unwrap();
    node.rest().await;
    assert!(!dir.path().join(SEED).exists());
    assert_eq!(names(&dir.path().join(RUN_DIR)), ["console.log"]);
}
