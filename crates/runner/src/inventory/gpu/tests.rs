use std::fs;
use std::os::unix::fs::symlink;

use super::*;

const A100: &str = "GPU-5c1b7f7e";
const H100: &str = "GPU-0f6f0c54";

/// A machine of files: two NVIDIA cards, one of AMD's, the board's own display.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new(iommu: bool) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        let cards = [
            ("0000:07:00.0", 0x03_0200, 0x10de, Some("nvidia"), 7),
            ("0000:07:00.1", 0x04_0300, 0x10de, Some("snd_hda_intel"), 7),
            ("0000:0f:00.0", 0x03_0200, 0x10de, Some("nvidia"), 9),
            ("0000:03:00.0", 0x03_8000, 0x1002, Some("amdgpu"), 9),
            ("0000:05:00.0", 0x03_0000, 0x1a03, Some("ast"), 5),
        ];
        for (address, class, vendor, driver, group) in cards {
            let device = machine.path("sys/bus/pci/devices").join(address);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("class"), format!("0x{class:06x}\n")).unwrap();
            fs::write(device.join("vendor"), format!("0x{vendor:04x}\n")).unwrap();
            fs::write(device.join("device"), "0x1234\n").unwrap();
            if let Some(driver) = driver {
                symlink(format!("/drivers/{driver}"), device.join("driver")).unwrap();
            }
            if iommu {
                symlink(format!("/groups/{group}"), device.join("iommu_group")).unwrap();
            }
        }
        machine
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join(path)
    }

    fn drive(&self, address: &str, driver: Option<&str>) {
        let link = self.path("sys/bus/pci/devices").join(address).join("driver");
        fs::remove_file(&link).unwrap();
        if let Some(driver) = driver {
            symlink(format!("/drivers/{driver}"), link).unwrap();
        }
    }

    fn vfio(&self) -> Vfio {
        let roots = Roots { sys: self.path("sys"), proc: self.path("proc"), dev: self.path("dev") };
        Vfio::new(self.path("vfio"), roots)
    }

    fn sight(&self) -> Sight {
        Sight { pci: self.vfio().look().unwrap(), held: BTreeMap::new(), root: true }
    }

    fn data(&self) -> &Path {
        self.0.path()
    }
}

fn listed(index: u32, uuid: &str, address: &str) -> Gpu {
    Gpu {
        index,
        uuid: uuid.to_owned(),
        name: "NVIDIA".to_owned(),
        pci_address: address.to_owned(),
        memory_bytes: 80 << 30,
        numa: Some(1),
        no_container: None,
        vfio: GpuVfio::default(),
    }
}

fn both() -> Vec<Gpu> {
    vec![listed(0, A100, "00000000:07:00.0"), listed(1, H100, "00000000:0f:00.0")]
}

fn identities(gpus: &[Gpu]) -> Vec<(u32, &str)> {
    gpus.iter().map(|gpu| (gpu.index, gpu.uuid.as_str())).collect()
}

#[test]
fn gpu_list_without_iommu_is_that_of_nvidia_smi() {
    let sight = Machine::new(false).sight();
    let gpus = sight.gpus(both(), &Book::default().updated(&both(), &sight.pci));
    assert_eq!(identities(&gpus), [(0, A100), (1, H100)]);
    assert!(gpus.iter().all(|gpu| gpu.no_container.is_none()));
    assert!(gpus[0].vfio.refusal.as_ref().unwrap().contains("IOMMU is off"));
    assert!(sight.gpus(Vec::new(), &Book::default()).is_empty());
}

#[test]
fn other_gpus_follow_nvidia_ones_without_the_boards_display() {
    let sight = Machine::new(true).sight();
    let gpus = sight.gpus(both(), &Book::default());
    assert_eq!(identities(&gpus), [(0, A100), (1, H100), (2, "PCI-0000:03:00.0")]);
    assert!(!gpus[2].is_for_containers() && gpus[1].is_for_containers());
    assert_eq!(gpus[1].vfio.peers, ["PCI-0000:03:00.0"]);
    assert_eq!(gpus[2].vfio.peers, [H100]);
    let vfio = &gpus[0].vfio;
    assert_eq!((vfio.group, vfio.refusal.as_deref()), (Some(7), None));
    assert_eq!((vfio.vendor_id.as_str(), vfio.device_id.as_str()), ("10de", "1234"));
    assert_eq!(vfio.audio.as_deref(), Some("0000:07:00.1"));
    let gpus = Sight { root: false, ..sight }.gpus(both(), &Book::default());
    assert!(gpus[0].vfio.refusal.as_ref().unwrap().contains("not root"));
}

#[test]
fn gpu_of_a_vm_keeps_its_identity_and_all_indexes() {
    let machine = Machine::new(true);
    let book = Book::default().updated(&both(), &machine.sight().pci);
    book.save(machine.data()).unwrap();
    machine.drive("0000:07:00.0", Some("vfio-pci"));
    let mut sight = machine.sight();
    sight.held.insert("0000:07:00.0".parse().unwrap(), InstanceId::from_u64(1));
    // nvidia-smi counts what is left.
    let left = vec![listed(0, H100, "00000000:0f:00.0")];
    let book = Book::load(machine.data()).updated(&left, &sight.pci);
    let gpus = sight.gpus(left, &book);
    assert_eq!(identities(&gpus), [(0, A100), (1, H100), (2, "PCI-0000:03:00.0")]);
    assert_eq!((gpus[0].memory_bytes, gpus[0].no_container.as_deref()), (80 << 30, None));
    assert!(gpus[0].vfio.bound && !gpus[1].vfio.bound);
}

#[test]
fn known_gpu_unfit_for_containers_has_a_reason() {
    let machine = Machine::new(true);
    let book = Book::default().updated(&both(), &machine.sight().pci);
    let why = |driver: Option<&str>| {
        machine.drive("0000:07:00.0", driver);
        machine.sight().gpus(vec![both().remove(1)], &book)[0].no_container.clone().unwrap()
    };
    assert!(why(Some("vfio-pci")).contains("by hand"));
    assert!(why(Some("nouveau")).contains("driver nouveau instead of nvidia"));
    assert!(why(Some("nvidia")).contains("not listed by nvidia-smi"));
    assert!(why(None).contains("modprobe nvidia"));
}

#[test]
fn moved_or_replaced_gpu_is_not_the_old_one() {
    let machine = Machine::new(true);
    let pci = machine.sight().pci;
    let book = Book::default().updated(&both(), &pci);
    // The same card in another slot.
    let moved = book.updated(&[listed(0, A100, "00000000:0f:00.0")], &pci);
    assert_eq!(moved.place_of(A100), "0000:0f:00.0".parse().ok());
    assert_eq!(moved.place_of(H100), None);
    // Another card in the same slot.
    let device = machine.path("sys/bus/pci/devices/0000:07:00.0/device");
    fs::write(device, "0x9999\n").unwrap();
    let replaced = book.updated(&[both().remove(1)], &machine.sight().pci);
    assert_eq!((replaced.place_of(A100), replaced.place_of(H100).is_some()), (None, true));
    fs::write(machine.path("gpus.json"), "{").unwrap();
    assert_eq!(Book::load(machine.data()), Book::default());
}

#[test]
fn gpus_of_a_vm_are_found_by_identity_with_unlisted_functions() {
    let machine = Machine::new(true);
    let pci = machine.sight().pci;
    Book::default().updated(&both(), &pci).save(machine.data()).unwrap();
    let reference = |uuid: &str| GpuRef { index: 0, uuid: uuid.to_owned() };
    let places = |uuids: &[&str]| {
        let gpus: Vec<GpuRef> = uuids.iter().map(|uuid| reference(uuid)).collect();
        super::places(machine.data(), &machine.vfio(), &gpus)
    };
    let found = places(&[A100, "PCI-0000:03:00.0"]).unwrap();
    let expected = ["0000:03:00.0", "0000:07:00.0"].map(|text| text.parse().unwrap());
    assert_eq!(found, BTreeSet::from(expected));
    for gone in ["GPU-none", "PCI-0000:07:00.1", "PCI-nonsense", "../x"] {
        assert!(matches!(places(&[gone]), Err(FindError::Gone(_))), "{gone}");
    }
    // The board's display in the card's group is nobody's to ask for, and goes along.
    let group = machine.path("sys/bus/pci/devices/0000:05:00.0/iommu_group");
    fs::remove_file(&group).unwrap();
    symlink("/groups/7", &group).unwrap();
    assert!(places(&[A100]).unwrap().contains(&"0000:05:00.0".parse().unwrap()));
}
