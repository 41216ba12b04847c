//! Stands for a runner in the guest of `scripts/test-vfio.sh`: gives that guest's devices to an
//! inner QEMU and takes them back, with the kernel's own drivers and a real (emulated) IOMMU.
//!
//! Each fact that holds is a line; the first that does not ends it. What it says is compared with
//! `scripts/vfio/expected.txt`.

#![allow(clippy::print_stdout, reason = "what it says is its result")]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kohakuriver_model::InstanceId;
use kohakuriver_vm::vfio::{
    Given, Kernel, PciAddress, Roots, RunningKernel, Vfio, VfioError, explain, is_display, refusal,
};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, chown};

const FIRMWARES: &str = "0000:00:17.0";
const DISPLAY: &str = "0000:00:15.0";
const SOUND: &str = "0000:00:15.1";
const DISK: &str = "0000:00:11.0";
const MOUNTED: &str = "0000:00:12.0";
const CARD: [&str; 2] = ["0000:00:10.0", "0000:00:10.1"];
/// Whom the inner QEMU runs as.
const QEMU_UID: u32 = 1000;
const GUEST_BYTES: u64 = 128 << 20;
/// The guest's memory and what QEMU needs beside it.
const LOCKED_BYTES: u64 = GUEST_BYTES + (1 << 30);
/// The disk of the state outlives the guest's reboot, as a node's does.
const JOURNAL: &str = "/state/vfio";
const REBOOTED: &str = "/state/rebooted";
/// An emulated machine in an emulated machine takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

type Outcome<T = ()> = Result<T, Box<dyn Error>>;
type State = BTreeMap<PciAddress, (Option<String>, Option<String>)>;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["scenario"] if Path::new(REBOOTED).exists() => after_reboot(),
        ["scenario"] => scenario(),
        ["take", writes] => act_and_die(writes, |vfio| vfio.take(task(1), &both()).map(drop)),
        ["give-back", writes] => act_and_die(writes, |vfio| vfio.give_back(task(1))),
        _ => Err("usage: vfio-node scenario".into()),
    };
    if let Err(error) = outcome {
        println!("FAILED: {error}");
        std::process::exit(1);
    }
}

fn scenario() -> Outcome {
    wait_for("drivers", || Ok(state()? == expected_drivers()?))?;
    ok("the kernel's own drivers have the devices");
    refusals()?;
    one_group()?;
    a_card_with_two_functions()?;
    pass_through()?;
    limits_and_other_trouble()?;
    one_owner()?;
    killed_anywhere()?;
    a_living_machine()?;
    // The node goes down with devices away.
    vfio().take(task(1), &both())?;
    fs::write(REBOOTED, "")?;
    nix::unistd::sync();
    ok("the node goes down while a machine has devices");
    run("reboot", &["-f"])?;
    thread::sleep(PATIENCE);
    Err("it did not reboot".into())
}

fn after_reboot() -> Outcome {
    wait_for("drivers", || Ok(state()? == expected_drivers()?))?;
    same("journals", journals()?, 1)?;
    same("held", vfio().held()?.len(), 0)?;
    repaired(&[task(1)])?;
    ok("after a reboot the drivers are the kernel's choice and the journal is dropped");
    Ok(())
}

fn expected_drivers() -> Outcome<State> {
    let mut expected = state()?;
    let drivers = [(DISPLAY, "bochs-drm"), (SOUND, "snd_hda_intel"), (DISK, "nvme")];
    let more = [(MOUNTED, "nvme"), (CARD[0], "e1000e"), (CARD[1], "e1000e")];
    for (address, driver) in drivers.into_iter().chain(more) {
        expected.insert(address.parse()?, (Some(driver.to_owned()), None));
    }
    Ok(expected)
}

fn refusals() -> Outcome {
    let pci = vfio().look()?;
    for address in [FIRMWARES, DISPLAY, DISK] {
        let address = address.parse()?;
        let why = refusal(&pci, address).map_or("can be given".to_owned(), |why| why.to_string());
        println!("   {address}: {}", without_group(&why));
    }
    let before = state()?;
    let disk = disk_of(MOUNTED)?;
    run("mount", &["-t", "ext4", &disk, "/mnt"])?;
    refused(&[MOUNTED])?;
    run("umount", &["/mnt"])?;
    let claim = OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(&disk)?;
    refused(&[MOUNTED])?;
    drop(claim);
    refused(&["0000:00:1e.0"])?;
    same("drivers", state()?, before)?;
    ok("what the machine needs is refused, and nothing was touched");
    Ok(())
}

/// Two displays and a network card behind a bridge that does not keep them apart.
fn one_group() -> Outcome {
    let pci = vfio().look()?;
    let beside = |gpu: &PciAddress| pci.peers(*gpu).len() == 1;
    let displays: Vec<PciAddress> = pci.gpus.iter().copied().filter(beside).collect();
    same("displays in one group", displays.len(), 2)?;
    let both: BTreeSet<PciAddress> = displays.iter().copied().collect();
    let parted = trouble(vfio().take(task(1), &BTreeSet::from([displays[0]])))?;
    println!("   {}", without_bus(&parted));
    let network = pci.functions.values().find(|f| f.driver.as_deref() == Some("e1000"));
    let network = network.ok_or("no e1000")?.address;
    let interface = first_in(&format!("/sys/bus/pci/devices/{network}/net"))?;
    let before = state()?;
    run("ip", &["link", "set", &interface, "up"])?;
    let busy = trouble(vfio().take(task(1), &both))?;
    println!("   {}", without_bus(&without_group(&busy)));
    same("drivers", state()?, before.clone())?;
    run("ip", &["link", "set", &interface, "down"])?;
    let given = vfio().take(task(1), &both)?;
    same("driver of the network card", driver_of(network)?.as_deref(), Some("vfio-pci"))?;
    let passed = given.arguments.iter().filter(|argument| argument.contains("vfio-pci,")).count();
    same("functions that are passed", passed, 2)?;
    vfio().give_back(task(1))?;
    same("drivers", state()?, before)?;
    ok("a group goes whole, never with a network card that is up");
    Ok(())
}

fn a_card_with_two_functions() -> Outcome {
    let before = state()?;
    let vfio =
        Vfio::new(JOURNAL.into(), Roots::default()).with_devices(|class| class >> 8 == 0x0200);
    println!("   {}", trouble(vfio.take(task(1), &set(&CARD[..1])?))?);
    let given = vfio.take(task(1), &set(&CARD)?)?;
    let devices: Vec<_> = given.arguments.iter().filter(|word| *word != "-device").collect();
    println!("   {devices:?}");
    vfio.give_back(task(1))?;
    same("drivers", state()?, before)?;
    ok("both functions of a network card went and came back");
    Ok(())
}

/// The inner machine boots from the disk, reads and writes it, and has the display with its sound.
fn pass_through() -> Outcome {
    let before = state()?;
    let given = vfio().take(task(1), &both())?;
    same("groups", given.nodes.len(), 2)?;
    let (status, said) = inner(&given, LOCKED_BYTES, &[])?;
    // QEMU's own talk is of displays that cannot be reset, which real ones can.
    let is_guests = |line: &&str| !line.is_empty() && !line.starts_with("qemu-system");
    for line in said.lines().map(|line| line.trim_matches(['\0', '\r'])).filter(is_guests) {
        println!("   | {line}");
    }
    if status != Some(33) {
        return Err(format!("the inner QEMU ended with {status:?}: {said}").into());
    }
    vfio().give_back(task(1))?;
    same("drivers", state()?, before)?;
    let mut disk = File::open(disk_of(DISK)?)?;
    let mut sector = [0; 12];
    disk.seek(SeekFrom::Start(9 * 512))?;
    disk.read_exact(&mut sector)?;
    same("sector 9", String::from_utf8_lossy(&sector).as_ref(), "Wector eight")?;
    ok("an inner machine booted from a given disk, and all of it came back");
    Ok(())
}

/// QEMU that does not start: each reason has an advice, and the devices come back.
fn limits_and_other_trouble() -> Outcome {
    let before = state()?;
    let given = vfio().take(task(1), &both())?;
    told("too little memory to lock", inner(&given, 16 << 20, &[])?)?;
    let dumb = inner(&given, LOCKED_BYTES, &["-device", "nonsense"])?;
    same("status of a wrong argument", dumb.0, Some(1))?;
    same("advice", explain(&dumb.1), None)?;
    // Somebody binds the sound behind our back.
    let sys = Path::new("/sys/bus/pci");
    fs::write(sys.join("devices").join(SOUND).join("driver_override"), "\n")?;
    fs::write(sys.join("drivers/vfio-pci/unbind"), SOUND)?;
    fs::write(sys.join("drivers/snd_hda_intel/bind"), SOUND)?;
    let without_sound = |word: &&String| !word.contains(SOUND);
    let arguments: Vec<String> = given.arguments.iter().filter(without_sound).cloned().collect();
    let arguments = arguments.chunks(2).filter(|pair| pair.len() == 2 && pair[1] != "-device");
    let arguments: Vec<String> = arguments.flatten().cloned().collect();
    told(
        "a function that another driver got",
        inner(&Given { arguments, ..given }, LOCKED_BYTES, &[])?,
    )?;
    vfio().give_back(task(1))?;
    same("drivers", state()?, before.clone())?;
    same("journals", journals()?, 0)?;
    ok("a QEMU that does not start leaves nothing");

    let given = vfio().take(task(1), &both())?;
    vfio().give_back(task(1))?;
    told("devices that were given back", inner(&given, LOCKED_BYTES, &[])?)?;
    same("drivers", state()?, before)?;
    ok("a QEMU that comes too late gets nothing");
    Ok(())
}

/// A running machine has its devices alone, and its runner cannot take them from under it.
fn one_owner() -> Outcome {
    let before = state()?;
    let given = vfio().take(task(1), &both())?;
    let mut qemu = paused(&given)?;
    println!("   {}", trouble(vfio().take(task(2), &set(&[DISK])?))?);
    told("a second QEMU", inner(&given, LOCKED_BYTES, &[])?)?;
    println!("   {}", without_numbers(&trouble(vfio().give_back(task(1)))?));
    same("it was kept", vfio().held()?.len(), 3)?;
    qemu.kill()?;
    vfio().give_back(task(1))?;
    qemu.wait()?;
    same("drivers", state()?, before.clone())?;
    ok("what a machine uses is nobody else's, and comes back when it is killed");

    // The administrator lends a device to a program of his own.
    let sys = Path::new("/sys/bus/pci");
    fs::write(sys.join("devices").join(DISK).join("driver_override"), "vfio-pci")?;
    fs::write(sys.join("drivers/nvme/unbind"), DISK)?;
    fs::write(sys.join("drivers_probe"), DISK)?;
    let group = fs::read_link(sys.join("devices").join(DISK).join("iommu_group"))?;
    let node = Path::new("/dev/vfio").join(group.file_name().ok_or("no group")?);
    let lent = state()?;
    let open = OpenOptions::new().read(true).write(true).open(&node)?;
    println!("   {}", without_numbers(&trouble(vfio().take(task(1), &both()))?));
    same("drivers", state()?, lent.clone())?;
    drop(open);
    vfio().take(task(1), &both())?;
    vfio().give_back(task(1))?;
    same("drivers", state()?, lent)?;
    fs::write(sys.join("devices").join(DISK).join("driver_override"), "\n")?;
    fs::write(sys.join("drivers/vfio-pci/unbind"), DISK)?;
    fs::write(sys.join("drivers_probe"), DISK)?;
    same("drivers", state()?, before)?;
    ok("what the administrator has with vfio-pci stays there");
    Ok(())
}

/// kill -9 before every single write to the kernel, and a new runner that repairs.
fn killed_anywhere() -> Outcome {
    let before = state()?;
    for act in ["take", "give-back"] {
        for writes in 0.. {
            if act == "give-back" {
                vfio().take(task(1), &both())?;
            }
            let me = std::env::current_exe()?;
            let status = Command::new(me).args([act, &writes.to_string()]).status()?;
            repaired(&[])?;
            same(&format!("drivers, {act} killed after {writes}"), state()?, before.clone())?;
            same("journals", journals()?, 0)?;
            if status.success() {
                same("writes", writes, 9)?;
                break;
            }
            same("how it ended", status.signal(), Some(Signal::SIGKILL as i32))?;
        }
        ok(&format!("{act} was killed before each of 9 writes, and repaired"));
    }
    Ok(())
}

/// The runner dies while a machine runs: the next one leaves it alone until it is gone.
fn a_living_machine() -> Outcome {
    let before = state()?;
    let me = std::env::current_exe()?;
    same("take", Command::new(me).args(["take", "99"]).status()?.success(), true)?;
    let nodes = groups_of(&vfio().held()?)?;
    let mut qemu = paused(&Given { arguments: arguments_by_hand(), nodes })?;
    repaired(&[task(1)])?;
    same("held", vfio().held()?.len(), 3)?;
    same("the machine", qemu.try_wait()?, None)?;
    qemu.kill()?;
    qemu.wait()?;
    repaired(&[])?;
    same("drivers", state()?, before)?;
    ok("a machine that outlives its runner keeps its devices, a dead one does not");
    Ok(())
}

// ---- what the steps are made of

fn vfio() -> Vfio {
    let is_wanted = |class: u32| is_display(class) || class >> 8 == 0x0108;
    Vfio::new(JOURNAL.into(), Roots::default()).with_devices(is_wanted)
}

/// Ends the process before the write that is one too many.
#[derive(Debug)]
struct Dying {
    left: AtomicUsize,
}

impl Kernel for Dying {
    fn write(&self, file: &Path, text: &str) -> io::Result<()> {
        if self.left.load(Ordering::SeqCst) == 0 {
            kill(Pid::this(), Signal::SIGKILL)?;
            thread::sleep(PATIENCE);
        }
        self.left.fetch_sub(1, Ordering::SeqCst);
        RunningKernel.write(file, text)
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        RunningKernel.load_module(name)
    }
}

fn act_and_die(writes: &str, act: impl FnOnce(Vfio) -> Result<(), VfioError>) -> Outcome {
    let left = AtomicUsize::new(writes.parse()?);
    Ok(act(vfio().with_kernel(Arc::new(Dying { left })))?)
}

fn repaired(living: &[InstanceId]) -> Outcome {
    let errors = vfio().repair(&living.iter().copied().collect());
    if errors.is_empty() { Ok(()) } else { Err(format!("repair: {errors:?}").into()) }
}

/// Runs the inner machine to its end: its exit status, and what it said.
fn inner(given: &Given, locked_bytes: u64, more: &[&str]) -> Outcome<(Option<i32>, String)> {
    let output = qemu(given, locked_bytes)?.args(more).output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

/// A machine that has its devices and does not run.
fn paused(given: &Given) -> Outcome<Child> {
    let mut qemu = qemu(given, LOCKED_BYTES)?;
    let child = qemu.arg("-S").stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let fds = PathBuf::from(format!("/proc/{}/fd", child.id()));
    wait_for("QEMU to open its groups", || {
        let open: Vec<_> =
            fs::read_dir(&fds)?.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
        Ok(given.nodes.iter().all(|node| open.contains(node)))
    })?;
    Ok(child)
}

/// As unprivileged as a runner starts it.
fn qemu(given: &Given, locked_bytes: u64) -> Outcome<Command> {
    for node in &given.nodes {
        // One that is not there is what some tests are about.
        let _ = chown(node, Some(QEMU_UID.into()), Some(QEMU_UID.into()));
    }
    setrlimit(Resource::RLIMIT_MEMLOCK, locked_bytes, 4 << 30)?;
    let memory = (GUEST_BYTES >> 20).to_string();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-display", "none", "-vga", "none", "-accel", "tcg"])
        .args(["-M", "q35,sata=off,smbus=off,i8042=off,vmport=off", "-cpu", "qemu64"])
        .args(["-m", &memory, "-boot", "menu=off", "-serial", "stdio"])
        .args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .args(&given.arguments)
        .stdin(Stdio::null())
        .uid(QEMU_UID)
        .gid(QEMU_UID);
    Ok(qemu)
}

/// What [`Given`] said to a runner that is dead.
fn arguments_by_hand() -> Vec<String> {
    let devices = [DISK, DISPLAY, SOUND].map(|host| format!("vfio-pci,host={host}"));
    devices.into_iter().flat_map(|device| ["-device".to_owned(), device]).collect()
}

fn groups_of(held: &BTreeMap<PciAddress, InstanceId>) -> Outcome<Vec<PathBuf>> {
    let pci = vfio().look()?;
    let groups: BTreeSet<u32> =
        held.keys().filter_map(|address| pci.functions.get(address)?.group).collect();
    Ok(groups.iter().map(|group| PathBuf::from(format!("/dev/vfio/{group}"))).collect())
}

fn told(what: &str, (status, said): (Option<i32>, String)) -> Outcome {
    same(&format!("QEMU's status, {what}"), status, Some(1))?;
    let advice = explain(&said).ok_or_else(|| format!("{what} is not explained: {said}"))?;
    println!("   {what}: {advice}");
    Ok(())
}

fn refused(addresses: &[&str]) -> Outcome {
    let why = trouble(vfio().take(task(1), &set(addresses)?))?;
    println!("   {}", without_group(&why));
    Ok(())
}

fn trouble<T: Debug>(outcome: Result<T, VfioError>) -> Outcome<String> {
    match outcome {
        Ok(done) => Err(format!("it was done: {done:?}").into()),
        Err(error) => Ok(error.to_string()),
    }
}

fn state() -> Outcome<State> {
    let functions = vfio().look()?.functions.into_values();
    Ok(functions.map(|f| (f.address, (f.driver, f.driver_override))).collect())
}

fn driver_of(address: PciAddress) -> Outcome<Option<String>> {
    Ok(state()?.remove(&address).and_then(|(driver, _)| driver))
}

/// The block device of a controller, once the kernel has found it.
fn disk_of(address: &str) -> Outcome<String> {
    let controllers = format!("/sys/bus/pci/devices/{address}/nvme");
    let mut disk = String::new();
    wait_for("the disk", || {
        let Ok(controller) = first_in(&controllers) else { return Ok(false) };
        disk = format!("/dev/{controller}n1");
        Ok(Path::new(&disk).exists())
    })?;
    Ok(disk)
}

fn first_in(dir: &str) -> Outcome<String> {
    let entry = fs::read_dir(dir)?.next().ok_or("an empty directory")??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

fn journals() -> Outcome<usize> {
    Ok(fs::read_dir(JOURNAL)?.count())
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> Outcome<bool>) -> Outcome {
    let end = Instant::now() + PATIENCE;
    while !is_there()? {
        if Instant::now() > end {
            return Err(format!("waited too long for {what}: {:?}", state()?).into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn run(command: &str, arguments: &[&str]) -> Outcome {
    let status = Command::new(command).args(arguments).status()?;
    if status.success() { Ok(()) } else { Err(format!("{command} {arguments:?}: {status}").into()) }
}

fn same<T: PartialEq + Debug>(what: &str, found: T, expected: T) -> Outcome {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: {found:?}, expected {expected:?}").into())
}

fn ok(fact: &str) {
    println!("ok {fact}");
}

/// The kernel counts groups in an order of its own.
fn without_group(text: &str) -> String {
    match text.split_once("IOMMU group ") {
        Some((before, after)) => {
            let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{before}IOMMU group N{after}")
        }
        None => text.to_owned(),
    }
}

/// The bus behind a bridge gets its number from the kernel.
fn without_bus(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let (address, after) = word.split_at(word.trim_end_matches([':', ',']).len());
        match address.parse::<PciAddress>() {
            Ok(address) => format!("BUS:{}{after}", &address.to_string()[8..]),
            Err(_) => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn without_numbers(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars().map(|c| if c.is_ascii_digit() { 'N' } else { c }) {
        if character != 'N' || !shown.ends_with('N') {
            shown.push(character);
        }
    }
    shown
}

fn both() -> BTreeSet<PciAddress> {
    [DISPLAY, DISK].iter().filter_map(|address| address.parse().ok()).collect()
}

fn set(addresses: &[&str]) -> Outcome<BTreeSet<PciAddress>> {
    Ok(addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>()?)
}

fn task(id: u64) -> InstanceId {
    InstanceId::from_u64(id)
}
