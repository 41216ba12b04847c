//! Whole distributions. They take minutes where they are emulated, so `make test-images` runs
//! these tests, and `make test` does not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kohakuriver_e2e::{Site, run, wait_until};

mod privileged;

/// Under emulation, on a machine that has other things to do.
const SLOW_BOOT: &str = "900";

fn image(site: &Site, arguments: &[&str]) -> String {
    let mut command = site.command();
    command.args(["qemu", "image"]).args(arguments).arg("--data-dir").arg(site.data_dir());
    run(&mut command).ok()
}

fn create(site: &Site, name: &str, image: &str, memory: &str) -> Duration {
    let begun = Instant::now();
    let arguments = ["vps", "create", "--backend", "qemu", "--ssh", "--name", name];
    let size = ["--vm-image", image, "--vm-memory", memory, "--vm-disk", "8", "-c", "2"];
    site.kr(&[&arguments[..], &size].concat()).ok();
    begun.elapsed()
}

fn inside(site: &Site, name: &str, command: &str) -> String {
    site.kr(&["terminal", "exec", name, "--", "sh", "-c", command]).ok()
}

/// The root file system's size in GiB.
fn root_size(site: &Site, name: &str) -> u64 {
    let blocks = inside(site, name, "stat -f -c '%b %S' /");
    let mut numbers = blocks.split_whitespace().map(|word| word.parse::<u64>().unwrap());
    (numbers.next().unwrap() * numbers.next().unwrap()) >> 30
}

fn delete(site: &Site, name: &str) {
    site.kr(&["vps", "delete", name, "--yes", "--force"]).ok();
}

/// Whatever has to be done at the first boot is done, and nothing failed.
fn is_in_order(site: &Site, name: &str) {
    let state = || {
        let asked = ["terminal", "exec", name, "--", "systemctl", "is-system-running"];
        site.kr(&asked).stdout.trim().to_owned()
    };
    let settled = || !matches!(state().as_str(), "starting" | "initializing" | "");
    wait_until("its services are up", Duration::from_secs(600), settled);
    let failed = inside(site, name, "systemctl --failed --no-legend");
    assert_eq!((state().as_str(), failed.as_str()), ("running", ""), "{name}");
}

#[test]
#[ignore = "takes minutes: make test-images"]
fn what_image_create_builds_boots_in_each_of_its_ways() {
    let mut site = Site::new();
    let begun = Instant::now();
    image(&site, &["create", "--name", "debian-12"]);
    eprintln!("image create: {:?}", begun.elapsed());
    let listed = image(&site, &["list", "--json"]);
    assert!(listed.contains("\"debian-12\""), "{listed}");
    let disk = site.data_dir().join("shared/vm-images/debian-12/disk.qcow2");
    let disk = disk.to_str().unwrap();
    image(&site, &["import", disk, "--name", "by-uefi", "--uefi"]);
    let _server = site.up_with(&["--vm-boot-limit", SLOW_BOOT]);

    // The kernel beside the disk, then the disk's own loader.
    eprintln!("by its kernel: {:?}", create(&site, "vm", "debian-12", "1024"));
    assert_eq!(site.kr(&["ssh", "vm", "--", "hostname; id -un"]).ok(), "vm\nroot\n");
    is_in_order(&site, "vm");
    assert!(root_size(&site, "vm") >= 7);
    let cmdline = inside(&site, "vm", "echo kept >/root/file; sync; cat /proc/cmdline");
    assert!(!cmdline.contains("BOOT_IMAGE"), "{cmdline}");
    let begun = Instant::now();
    site.kr(&["vps", "restart", "vm"]).ok();
    eprintln!("by its loader: {:?}", begun.elapsed());
    let cmdline = inside(&site, "vm", "cat /proc/cmdline");
    assert!(cmdline.contains("BOOT_IMAGE"), "{cmdline}");
    assert_eq!(inside(&site, "vm", "cat /root/file"), "kept\n");
    is_in_order(&site, "vm");
    delete(&site, "vm");

    eprintln!("by UEFI: {:?}", create(&site, "uefi", "by-uefi", "1024"));
    assert_eq!(inside(&site, "uefi", "[ -d /sys/firmware/efi ] && hostname"), "uefi\n");
    is_in_order(&site, "uefi");
    assert!(root_size(&site, "uefi") >= 7);
    site.kr(&["vps", "restart", "uefi"]).ok();
    assert_eq!(inside(&site, "uefi", "[ -d /sys/firmware/efi ] && hostname"), "uefi\n");
    delete(&site, "uefi");
}

/// What `scripts/test-images.sh` had `scripts/vm-stock-image.sh` make.
fn disk_made(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let disk = test.ancestors().nth(4).unwrap().join(format!("vm-stock/{name}.qcow2"));
    assert!(disk.exists(), "no {}: run scripts/vm-stock-image.sh on it", disk.display());
    disk
}

fn sha256(path: &Path) -> String {
    let sum = run(Command::new("sha256sum").arg(path)).ok();
    sum.split(' ').next().unwrap().to_owned()
}

#[test]
#[ignore = "takes minutes: make test-images"]
fn an_image_nobody_made_for_us_gets_agent_name_keys_and_room_by_its_own_cloud_init() {
    let mut site = Site::new();
    let disk = disk_made("disk");
    let (path, sum) = (disk.to_str().unwrap(), sha256(&disk));
    let wrong = sum.chars().rev().collect::<String>();
    let mut refused = site.command();
    refused.args(["qemu", "image", "import", path, "--name", "stock", "--sha256", &wrong]);
    refused.arg("--data-dir").arg(site.data_dir());
    run(&mut refused).fails(1, &[&sum]);
    image(&site, &["import", path, "--name", "stock", "--sha256", &sum]);
    let mut server = site.up_with(&["--vm-boot-limit", SLOW_BOOT]);

    eprintln!("a stock image: {:?}", create(&site, "vm", "stock", "1024"));
    assert_eq!(site.kr(&["ssh", "vm", "--", "hostname; id -un"]).ok(), "vm\nroot\n");
    let told = "cloud-init status --wait >/dev/null; cloud-init status --long; \
                grep -hE 'WARN|ERROR|Traceback' /var/log/cloud-init.log | tail -n 20";
    let told = inside(&site, "vm", told);
    assert!(told.contains("status: done"), "{told}");
    assert!(root_size(&site, "vm") >= 7);
    let agent = inside(&site, "vm", "systemctl is-active kohakuriver-agent.service");
    assert_eq!(agent, "active\n");
    // Its own sshd lets the same key in, as the image's own user and as root.
    let task = site.json(&["vps", "status", "vm"]);
    let key = site.key_of(task["task_id"].as_str().unwrap());
    let public = fs::read_to_string(key.with_extension("pub")).unwrap();
    let blob = public.split(' ').nth(1).unwrap().to_owned();
    let keys = inside(&site, "vm", "cat /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys");
    assert_eq!(keys.matches(&blob).count(), 2, "{keys}");
    let network = inside(&site, "vm", "ip -4 -o addr show scope global; ip route show default");
    let address = task["vm_ip"].as_str().unwrap();
    assert!(network.contains(address) && network.contains("default via"), "{network}");

    // The agent is there at every later boot, for whichever runner.
    site.kr(&["vps", "stop", "vm"]).ok();
    server.kill();
    server = site.up_with(&["--vm-boot-limit", SLOW_BOOT]);
    site.kr(&["vps", "restart", "vm"]).ok();
    assert_eq!(inside(&site, "vm", "hostname"), "vm\n");
    delete(&site, "vm");
    assert_eq!(server.interrupt(), 0);
}
