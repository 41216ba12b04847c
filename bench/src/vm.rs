//! Virtual machines: from creation to the first login, beside a QEMU command written by hand that
//! boots the same image in the same way; the cost of a virtual machine for its node.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kohakuriver_e2e::{Server, Site, run as run_command};
use kohakuriver_vm::accel::{AccelWish, choose, find_qemu};
use kohakuriver_vm::disk::Disks;
use kohakuriver_vm::image::{Image, ImageStore};
use kohakuriver_vm::network::Nic;
use kohakuriver_vm::network::user::{self, Outward};
use kohakuriver_vm::seed::Seed;

use crate::sample::{Line, timed};

const ROUNDS: usize = 3;
const MEMORY_MIB: u64 = 1024;
const IMAGE: &str = "debian-12";

pub fn run() -> Vec<Line> {
    let store = store();
    let image = ImageStore::new(&store)
        .get(&IMAGE.parse().expect("a name"))
        .unwrap_or_else(|e| panic!("{e}: scripts/bench.sh makes it ({})", store.display()));
    let mut site = Site::new();
    let images = site.data_dir().join("shared/vm-images");
    fs::create_dir_all(images.parent().expect("it has one")).expect("the site is writable");
    std::os::unix::fs::symlink(&store, images).expect("the site is writable");
    let server = site.up();
    let key = site.make_key("bench");
    let public = fs::read_to_string(key.with_extension("pub")).expect("a pair has two halves");

    let (mut by_hand, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut guest = None;
        by_hand.push(timed(|| guest = Some(ByHand::boot(site.path(), &image, &key, &public))));
        drop(guest);
        ours.push(timed(|| {
            create(&site, &key);
            let key = key.to_str().expect("our own path");
            site.kr(&["ssh", "vm", "--key", key, "--", "true"]).ok();
        }));
        site.kr(&["vps", "delete", "vm", "--yes", "--force"]).ok();
    }
    let by_hand = Line::millis("qemu by hand; ssh to its sshd", &by_hand);
    let ours = Line::millis("vps create --backend qemu; kohakuriver ssh", &ours).against(&by_hand);

    let idle = processor_share(&server);
    create(&site, &key);
    // What a first boot does afterwards is over.
    std::thread::sleep(Duration::from_secs(30));
    let pid = site.machines()[0];
    let beyond = Beyond::of(pid);
    let with_machine = processor_share(&server);
    let mut lines = vec![by_hand, ours, overlays(site.path(), &image)];
    let mut memory = |what: &str, mebibytes| lines.push(Line::new(what, "MiB", vec![mebibytes]));
    memory("QEMU beyond its guest's memory (PSS)", beyond.all);
    memory("of it translated code, which KVM has not", beyond.translated);
    memory("of it files that all machines share", beyond.files);
    lines.push(Line::new("host and runner, no machine, processor time", "ms/s", vec![idle]));
    let what = "the same with an idle machine";
    lines.push(Line::new(what, "ms/s", vec![with_machine]));
    site.kr(&["vps", "delete", "vm", "--yes", "--force"]).ok();
    lines
}

/// The directory where `scripts/bench.sh` puts images.
fn store() -> PathBuf {
    let executable = std::env::current_exe().expect("a program knows its own file");
    executable.ancestors().nth(3).expect("it is three levels below").join("vm-images")
}

fn create(site: &Site, key: &Path) {
    let public = format!("{}.pub", key.display());
    let memory = MEMORY_MIB.to_string();
    let arguments = ["vps", "create", "--backend", "qemu", "--name", "vm", "--vm-image", IMAGE];
    let size = ["-c", "1", "--vm-memory", &memory, "--vm-disk", "8", "--public-key-file", &public];
    site.kr(&[&arguments[..], &size].concat()).ok();
}

/// A virtual machine that was started by hand.
struct ByHand {
    qemu: Child,
    dir: tempfile::TempDir,
}

impl ByHand {
    /// Returns when sshd accepts a login.
    fn boot(site: &Path, image: &Image, key: &Path, public: &str) -> Self {
        let dir = tempfile::tempdir_in(site).expect("the site is writable");
        let disk = dir.path().join("disk.qcow2");
        let mut overlay = Command::new("qemu-img");
        overlay.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(&image.disk);
        run_command(overlay.arg(&disk).arg("8G")).ok();
        let seed = dir.path().join("seed.img");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("it has one").port();
        drop(listener);
        let nic = user::nic(port, 22, Outward::Open);
        let told = Seed {
            instance_id: "by-hand".to_owned(),
            hostname: "by-hand".to_owned(),
            authorized_keys: vec![public.trim().to_owned()],
            network_config: nic.network_config(),
            settings: Vec::new(),
        };
        told.write(&seed).expect("the seed fits");
        let qemu = Self::start(image, &disk, &seed, &nic);
        let this = Self { qemu, dir };
        let known = this.dir.path().join("known_hosts");
        let login = || {
            let mut ssh = Command::new("ssh");
            ssh.args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "BatchMode=yes",
                "-o",
                "LogLevel=ERROR",
            ]);
            ssh.args(["-o", "ConnectTimeout=1", "-o"])
                .arg(format!("UserKnownHostsFile={}", known.display()));
            ssh.arg("-i").arg(key).args(["-p", &port.to_string(), "root@127.0.0.1", "true"]);
            run_command(&mut ssh).code == 0
        };
        let deadline = Instant::now() + Duration::from_secs(300);
        while !login() {
            assert!(Instant::now() < deadline, "the guest by hand does not let in");
            std::thread::sleep(Duration::from_millis(100));
        }
        this
    }

    fn start(image: &Image, disk: &Path, seed: &Path, nic: &Nic) -> Child {
        let accel = futures_of(choose(&find_qemu().expect("QEMU"), AccelWish::Auto))
            .expect("works")
            .accel
            .word();
        let processor = if accel == "kvm" { "host" } else { "max,svm=off" };
        let kernel = image.meta.kernel.as_ref().expect("our image has its kernel beside it");
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]);
        qemu.args([
            "-machine",
            &format!("q35,accel={accel},sata=off,smbus=off,i8042=off,vmport=off,hpet=off"),
        ]);
        qemu.args(["-cpu", processor, "-smp", "1", "-m", &format!("{MEMORY_MIB}M")]);
        qemu.arg("-kernel").arg(image.kernel_file()).arg("-initrd").arg(image.initrd_file());
        // There is nobody for the agent to serve.
        qemu.args([
            "-append",
            &format!("{} systemd.mask=kohakuriver-agent.service", kernel.cmdline),
        ]);
        qemu.args([
            "-drive",
            &format!("if=virtio,format=qcow2,discard=unmap,file={}", disk.display()),
        ]);
        qemu.args(["-drive", &format!("if=virtio,format=raw,readonly=on,file={}", seed.display())]);
        qemu.args(&nic.args).args(["-device", "virtio-rng-pci"]);
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        qemu.spawn().expect("QEMU starts")
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn futures_of<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

/// Creates disks over the image, one after the other.
fn overlays(site: &Path, image: &Image) -> Line {
    let disks = Disks::new(site.join("overlays"));
    disks.prepare().expect("the site is writable");
    let files = vec![(image.disk.clone(), "disk.qcow2")];
    let bytes = image.meta.virtual_bytes;
    futures_of(disks.adopt_image("image", files, bytes, |_| true, |_| {})).expect("it is linked");
    let samples: Vec<Duration> = (0..20)
        .map(|number| {
            let dir = disks.disks_dir().join(number.to_string());
            fs::create_dir(&dir).expect("a fresh directory");
            timed(|| futures_of(disks.create(&dir, "image", 8 << 30)).expect("it is made"))
        })
        .collect();
    Line::millis("an overlay disk", &samples)
}

/// QEMU's memory beside its guest's, in MiB. Shared memory counts proportionally (PSS).
#[derive(Default)]
struct Beyond {
    all: f64,
    /// Translated code. There is none under KVM.
    translated: f64,
    /// QEMU's program, its libraries and cached parts of an image's files: the same for every
    /// virtual machine.
    files: f64,
}

impl Beyond {
    fn of(pid: i32) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("the machine runs");
        let mut beyond = Self::default();
        let (mut header, mut size) = ("", 0.0);
        for line in text.lines() {
            let (field, rest) = line.split_once(' ').unwrap_or((line, ""));
            let number = || rest.split_whitespace().next().and_then(|word| word.parse().ok());
            match field {
                "Size:" => size = number().unwrap_or(0.0),
                // The guest's memory is one mapping of its size.
                "Pss:" if size < (MEMORY_MIB * 1024) as f64 || !is_anonymous(header) => {
                    let mebibytes: f64 = number().unwrap_or(0.0) / 1024.0;
                    beyond.all += mebibytes;
                    if header.starts_with("rwx") {
                        beyond.translated += mebibytes;
                    } else if !is_anonymous(header) {
                        beyond.files += mebibytes;
                    }
                }
                _ if !field.ends_with(':') => header = rest,
                _ => {}
            }
        }
        beyond
    }
}

/// Parses permissions, offset, device, inode, and a file's path; the heap and stacks have names in
/// brackets.
fn is_anonymous(header: &str) -> bool {
    header.split_whitespace().nth(4).is_none_or(|path| path.starts_with('['))
}

/// Measures milliseconds of processor time per second, over ten seconds.
fn processor_share(server: &Server) -> f64 {
    const SECONDS: u64 = 10;
    let used = || {
        let text = fs::read_to_string(format!("/proc/{}/stat", server.pid())).expect("it runs");
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks: f64 =
            [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<f64>().ok()).sum();
        ticks * 10.0
    };
    let before = used();
    std::thread::sleep(Duration::from_secs(SECONDS));
    (used() - before) / SECONDS as f64
}
