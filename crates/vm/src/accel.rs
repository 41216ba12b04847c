//! Whether guests run under KVM here: a guest is run and has to say so.
//!
//! `/dev/kvm` that opens proves nothing: in some clouds it is there, BIOSes run under it, and every
//! system hangs or QEMU gives up. So a boot sector (`accel/probe.S`) is started with the processor
//! that machines get; it switches to 64-bit mode with paging as any kernel does, and ends QEMU
//! with a code of its own. That takes a tenth of a second where KVM works.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use kohakuriver_model::VmAccel;
use tokio::process::Command;
use tokio::time::timeout;

/// What the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccelWish {
    /// KVM where it works, else emulation.
    #[default]
    Auto,
    Kvm,
    Tcg,
}

impl FromStr for AccelWish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            other => Err(format!("'{other}' is none of auto, kvm, tcg")),
        }
    }
}

/// QEMU's program on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    pub program: PathBuf,
    pub version: String,
}

const PROGRAM: &str = "qemu-system-x86_64";
const BOOT_SECTOR: &[u8; 512] = include_bytes!("accel/probe.bin");
/// The firmware takes no disk that is smaller.
const DISK_BYTES: u64 = 1 << 20;
/// What the boot sector writes to the debug port comes out of QEMU as twice that and one.
const RAN: i32 = 33;
const ROOTS_ALONE: &str = "/dev/kvm is open to root alone, and QEMU does not run as root: \
    chgrp kvm /dev/kvm; chmod 660 /dev/kvm";
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// Where QEMU is: `None` where it is not installed.
pub fn find_qemu() -> Option<PathBuf> {
    find_program(PROGRAM)
}

/// A program of the PATH, or of where distributions put programs for root.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/sbin", "/bin", "/usr/libexec"];
    std::env::split_paths(&path)
        .chain(usual.map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}

/// Asks QEMU for its version.
///
/// # Errors
/// It does not run, with the reason.
pub async fn ask_version(program: &Path) -> Result<Qemu, String> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PROBE_LIMIT, command.output()).await.map_err(|_| "it hangs".to_owned())?;
    let output = output.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_once("version ").and_then(|(_, rest)| rest.split_whitespace().next());
    match version {
        Some(version) if output.status.success() => {
            Ok(Qemu { program: program.to_owned(), version: version.to_owned() })
        }
        Some(_) | None => Err(last_line(&output.stderr)),
    }
}

/// Runs the guest under an accelerator.
///
/// # Errors
/// The guest did not run, with the reason.
pub async fn prove(program: &Path, accel: VmAccel) -> Result<(), String> {
    if accel == VmAccel::Kvm {
        let device = std::fs::File::options().read(true).write(true).open("/dev/kvm");
        let device = device.map_err(|error| why_no_kvm(&error))?;
        let mode = device.metadata().map_err(|error| why_no_kvm(&error))?.mode();
        if nix::unistd::geteuid().is_root() && !is_open_to_users(mode) {
            return Err(ROOTS_ALONE.to_owned());
        }
    }
    let disk = boot_disk().map_err(|error| format!("no file for a guest: {error}"))?;
    let processor = match accel {
        VmAccel::Kvm => "host",
        VmAccel::Tcg => "max",
    };
    let drive = "if=none,id=disk,format=raw,readonly=on,file=/dev/fd/0";
    let mut command = Command::new(program);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]);
    command.args(["-machine", &format!("q35,sata=off,accel={}", accel.word()), "-cpu", processor]);
    command.args(["-m", "32M", "-drive", drive]);
    command.args(["-device", "virtio-blk-pci,drive=disk,bootindex=0"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    command.stdin(disk).kill_on_drop(true);
    match timeout(PROBE_LIMIT, command.output()).await {
        Err(_) => Err("a guest that is started under KVM hangs".to_owned()),
        Ok(Err(error)) => Err(format!("QEMU does not start: {error}")),
        Ok(Ok(output)) if output.status.code() == Some(RAN) => Ok(()),
        Ok(Ok(output)) => {
            tracing::debug!(said = last_line(&output.stderr), "a guest did not run");
            Err("a guest that is started under KVM does not run".to_owned())
        }
    }
}

/// Whether `/dev/kvm` can be opened by QEMU, which gives up root before and gets the device's group.
fn is_open_to_users(mode: u32) -> bool {
    mode & 0o060 == 0o060 || mode & 0o006 == 0o006
}

fn why_no_kvm(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound {
        "there is no /dev/kvm".to_owned()
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "/dev/kvm may not be opened: let this user into the group kvm".to_owned()
    } else {
        format!("/dev/kvm: {error}")
    }
}

/// A file without a name: nothing is left of it whatever happens.
fn boot_disk() -> io::Result<std::fs::File> {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let file = std::fs::File::from(nix::sys::memfd::memfd_create(c"probe", flags)?);
    file.set_len(DISK_BYTES)?;
    std::os::unix::fs::FileExt::write_all_at(&file, BOOT_SECTOR, 0)?;
    Ok(file)
}

fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    line.trim_start_matches("qemu-system-x86_64: ").chars().take(200).collect()
}

/// What machines run under, and why not under something faster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub accel: VmAccel,
    pub warning: Option<String>,
}

/// Finds out what machines can run under here.
///
/// # Errors
/// What was wished for does not work.
pub async fn choose(program: &Path, wish: AccelWish) -> Result<Choice, String> {
    match wish {
        AccelWish::Tcg => Ok(Choice { accel: VmAccel::Tcg, warning: None }),
        AccelWish::Kvm => match prove(program, VmAccel::Kvm).await {
            Ok(()) => Ok(Choice { accel: VmAccel::Kvm, warning: None }),
            Err(reason) => Err(format!("KVM is asked for and does not work here: {reason}")),
        },
        AccelWish::Auto => Ok(match prove(program, VmAccel::Kvm).await {
            Ok(()) => Choice { accel: VmAccel::Kvm, warning: None },
            Err(reason) => Choice {
                accel: VmAccel::Tcg,
                warning: Some(format!("emulated, some ten times slower: {reason}")),
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command as StdCommand;

    use super::*;

    #[test]
    fn kvm_of_root_alone_is_not_for_machines() {
        for (mode, open) in [(0o600, false), (0o640, false), (0o660, true), (0o666, true)] {
            assert_eq!(is_open_to_users(0o20_000 | mode), open, "{mode:o}");
        }
    }

    #[tokio::test]
    async fn the_guest_runs_where_it_is_emulated_and_qemu_says_its_version() {
        let program = find_qemu().expect("QEMU is installed");
        let qemu = ask_version(&program).await.unwrap();
        assert!(qemu.version.starts_with(|c: char| c.is_ascii_digit()), "{qemu:?}");
        prove(&program, VmAccel::Tcg).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_qemu_is_told_so() {
        assert!(prove(Path::new("/bin/false"), VmAccel::Tcg).await.is_err());
        assert!(ask_version(Path::new("/bin/false")).await.is_err());
        assert!(ask_version(Path::new("/nowhere")).await.is_err());
        let asked = choose(Path::new("/bin/false"), AccelWish::Kvm).await;
        assert!(asked.unwrap_err().contains("does not work here"));
        let chosen = choose(Path::new("/bin/false"), AccelWish::Auto).await.unwrap();
        assert_eq!(chosen.accel, VmAccel::Tcg);
        assert!(chosen.warning.is_some());
    }

    #[test]
    fn the_boot_sector_is_what_its_source_says() {
        let dir = tempfile::tempdir().unwrap();
        let (object, binary) = (dir.path().join("p.o"), dir.path().join("p.bin"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/accel/probe.S");
        let done = |command: &mut StdCommand| assert!(command.status().unwrap().success());
        done(StdCommand::new("as").arg("--32").arg(source).arg("-o").arg(&object));
        let extract = ["-O", "binary", "-j", ".text"];
        done(StdCommand::new("objcopy").args(extract).arg(&object).arg(&binary));
        assert_eq!(std::fs::read(binary).unwrap(), BOOT_SECTOR);
    }
}
