use std::process::Command as StdCommand;

use super::*;

const MIB: u64 = 1 << 20;

struct World {
    dir: tempfile::TempDir,
    disks: Disks,
    machine: PathBuf,
}

impl World {
    /// A machine's disk over an image that holds 1 MiB of `a`.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disks = Disks::new(dir.path().join("vm"));
        disks.prepare().unwrap();
        let image = dir.path().join("image.qcow2");
        img(&["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "16M"]);
        write(&image, "0x61");
        let files = vec![(image, DISK)];
        disks.adopt_image("image-00", files, 16 * MIB, |_| true, |_| {}).await.unwrap();
        let machine = disks.disks_dir().join("7");
        fs::create_dir(&machine).unwrap();
        disks.create(&machine, "image-00", 32 * MIB).await.unwrap();
        Self { dir, disks, machine }
    }

    fn disk(&self) -> PathBuf {
        self.machine.join(DISK)
    }

    async fn freeze(&self, current: &str, name: &str, below: &str) -> String {
        let next = format!("disk-{name}.qcow2");
        self.disks.begin_freeze(&self.machine, current, name, &next).await.unwrap();
        self.disks.finish_freeze(name, below).unwrap();
        next
    }
}

fn img(args: &[&str]) {
    let status = StdCommand::new("qemu-img").args(args).status().unwrap();
    assert!(status.success(), "{args:?}");
}

fn io(disk: &Path, command: &str) -> String {
    let output = StdCommand::new("qemu-io").args(["-c", command]).arg(disk).output().unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn write(disk: &Path, pattern: &str) {
    let said = io(disk, &format!("write -P {pattern} 0 1M"));
    assert!(said.contains("wrote 1048576"), "{said}");
}

fn holds(disk: &Path, pattern: &str) -> bool {
    io(disk, &format!("read -P {pattern} 0 1M")).contains("read 1048576")
        && !io(disk, &format!("read -P {pattern} 0 1M")).contains("failed")
}

#[tokio::test]
async fn a_disk_is_as_large_as_asked_and_starts_with_its_image() {
    let world = World::new().await;
    assert!(holds(&world.disk(), "0x61"));
    assert_eq!(virtual_bytes(&world.disk()).unwrap(), 32 * MIB);
    let small = world.disks.disks_dir().join("8");
    fs::create_dir(&small).unwrap();
    world.disks.create(&small, "image-00", MIB).await.unwrap();
    assert_eq!(virtual_bytes(&small.join(DISK)).unwrap(), 16 * MIB, "no image is cut");
}

#[tokio::test]
async fn an_image_that_is_replaced_or_deleted_leaves_disks_as_they_are() {
    let world = World::new().await;
    fs::remove_file(world.dir.path().join("image.qcow2")).unwrap();
    assert!(holds(&world.disk(), "0x61"));
    assert!(matches!(world.disks.layer("image-01"), Err(DiskError::Layer(_))));
}

#[tokio::test]
async fn what_is_frozen_stays_and_what_is_written_afterwards_does_not_reach_it() {
    let world = World::new().await;
    write(&world.disk(), "0x62");
    let next = world.machine.join(world.freeze(DISK, "7-1", "image-00").await);
    write(&next, "0x63");
    assert!(holds(&next, "0x63"));
    let copy = world.disks.disks_dir().join("9");
    fs::create_dir(&copy).unwrap();
    world.disks.create(&copy, "7-1", 0).await.unwrap();
    assert!(holds(&copy.join(DISK), "0x62"));
    assert_eq!(world.disks.chain("7-1").unwrap(), ["7-1", "image-00"]);
}

#[tokio::test]
async fn a_freeze_that_is_cut_off_anywhere_loses_nothing() {
    for cut in 0..3 {
        let world = World::new().await;
        write(&world.disk(), "0x62");
        let (disks, machine) = (&world.disks, &world.machine);
        disks.begin_freeze(machine, DISK, "7-1", "next.qcow2").await.unwrap();
        let next = world.machine.join("next.qcow2");
        match cut {
            // QEMU has not gone over, and writes to what is the layer by now.
            0 => write(&world.disk(), "0x63"),
            // It has.
            1 => write(&next, "0x63"),
            // The next disk was not even written whole.
            _ => {
                fs::rename(&next, machine.join(UNNAMED)).unwrap();
                write(&world.disk(), "0x63");
            }
        }
        let gone_over = disks.settle(machine, "7-1", "next.qcow2", "image-00").unwrap();
        assert_eq!(gone_over, cut < 2);
        let (current, layer) = if gone_over { ("next.qcow2", "7-1") } else { (DISK, "image-00") };
        disks.drop_old_disks(machine, current).unwrap();
        disks.collect(&BTreeSet::from([layer.to_owned()])).unwrap();
        assert!(holds(&machine.join(current), "0x63"), "cut {cut}");
        assert_eq!(fs::read_dir(machine).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn a_layer_goes_when_nothing_is_built_on_it() {
    let world = World::new().await;
    let second = world.freeze(DISK, "7-1", "image-00").await;
    let third = world.freeze(&second, "7-2", "7-1").await;
    world.disks.drop_old_disks(&world.machine, &third).unwrap();
    world.disks.collect(&BTreeSet::from(["7-2".to_owned()])).unwrap();
    assert_eq!(world.disks.chain("7-2").unwrap(), ["7-2", "7-1", "image-00"]);
    world.disks.collect(&BTreeSet::new()).unwrap();
    assert_eq!(fs::read_dir(world.disks.layers_dir()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_flat_disk_has_what_every_layer_held() {
    let world = World::new().await;
    let at = |disk: &Path, pattern: &str, mebibyte: u64| {
        let said = io(disk, &format!("write -P {pattern} {mebibyte}M 1M"));
        assert!(said.contains("wrote 1048576"), "{said}");
    };
    at(&world.disk(), "0x62", 1);
    let second = world.freeze(DISK, "7-1", "image-00").await;
    at(&world.machine.join(&second), "0x63", 2);
    let third = world.freeze(&second, "7-2", "7-1").await;
    at(&world.machine.join(&third), "0x64", 3);
    let rebase = |args: &[&str]| {
        let mut command = tool(&world.machine);
        command.args(args);
        command
    };
    world.disks.flatten(&world.machine, &third, "image-00", rebase).await.unwrap();
    world.disks.drop_old_disks(&world.machine, &third).unwrap();
    world.disks.collect(&BTreeSet::from(["image-00".to_owned()])).unwrap();
    assert!(matches!(world.disks.layer("7-1"), Err(DiskError::Layer(_))));
    for (mebibyte, pattern) in ["0x61", "0x62", "0x63", "0x64"].into_iter().enumerate() {
        let said = io(&world.machine.join(&third), &format!("read -P {pattern} {mebibyte}M 1M"));
        assert!(said.contains("read 1048576") && !said.contains("failed"), "{pattern}: {said}");
    }
}

#[tokio::test]
async fn an_image_that_is_replaced_while_it_is_linked_makes_no_layer() {
    let world = World::new().await;
    let files = vec![(world.dir.path().join("image.qcow2"), DISK)];
    let adopted = world.disks.adopt_image("image-01", files, MIB, |_| false, |_| {}).await;
    assert!(adopted.unwrap_err().to_string().contains("replaced"));
    assert!(matches!(world.disks.layer("image-01"), Err(DiskError::Layer(_))));
    let left = fs::read_dir(world.disks.layers_dir()).unwrap().count();
    assert_eq!(left, 1, "only the first image's");
}
