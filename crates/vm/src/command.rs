//! The arguments of one machine's QEMU. Pure.
//!
//! Paths are relative to the machine's own directory, where QEMU runs (see
//! [`launch`](crate::launch)). There is no device that a VPS does not need: each costs boot time
//! and is a way to attack QEMU.

use std::ffi::OsString;

use kohakuriver_model::VmAccel;

/// Names in the machine's directory, which QEMU's user may not write to.
pub const DISK: &str = "disk.qcow2";
pub const SEED: &str = "seed.img";
pub const UEFI_VARIABLES: &str = "uefi-variables.fd";
/// What QEMU makes itself is in a directory of its own.
pub const RUN_DIR: &str = "run";
pub const QMP_SOCKET: &str = "qmp.sock";
pub const CONSOLE_SOCKET: &str = "console.sock";
pub const CONSOLE_LOG: &str = "console.log";
pub const GUEST_AGENT_SOCKET: &str = "guest-agent.sock";
/// The root disk as QEMU knows it.
pub const ROOT_NODE: &str = "root";
pub const ROOT_DEVICE: &str = "disk0";
/// An emulated guest's code, translated, in MiB; when it is full, QEMU begins anew. Without a bound
/// it grows to a gigabyte. A boot of Debian takes 10 % longer with 64 than with 128 and more (which
/// do not differ), and twice as long with 32.
const TRANSLATED_MIB: u32 = 64;
/// QEMU sets a part of that aside for each processor, so those that idle must not use it up.
const TRANSLATED_MIB_EACH: u32 = 2;

/// What a machine is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    pub name: String,
    pub accel: VmAccel,
    pub cpus: u32,
    pub memory_bytes: u64,
    /// Its memory comes from this NUMA node of the machine.
    pub numa: Option<u32>,
    pub boot: Boot,
    /// The name of its disk.
    pub disk: String,
    /// The disk with our executable.
    pub agent_disk: Option<OsString>,
    /// The network's own arguments.
    pub nic: Vec<String>,
    /// Those of devices that are given to it whole.
    pub devices: Vec<String>,
}

/// What starts the guest's system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// The boot loader on its disk, by the firmware that PCs had.
    Bios,
    /// The same by UEFI, whose program is at `code`.
    Uefi { code: OsString },
    /// A kernel of the image, without a boot loader.
    Kernel { kernel: OsString, initrd: Option<OsString>, cmdline: String },
}

impl Machine {
    pub fn args(&self) -> Vec<OsString> {
        let mut args = Args::default();
        args.option("-name", format!("guest={},debug-threads=on", self.name));
        args.word("-nodefaults");
        args.word("-no-user-config");
        args.option("-display", "none");
        args.option("-vga", "none");
        self.processor(&mut args);
        self.boot(&mut args);
        disks(&mut args, &self.disk, self.agent_disk.as_ref());
        channels(&mut args);
        args.option("-device", "virtio-rng-pci");
        args.option("-device", "virtio-balloon-pci,free-page-reporting=on");
        // Tells of a guest whose kernel gave up.
        args.option("-device", "pvpanic-pci");
        args.words(&self.nic);
        args.words(&self.devices);
        // A guest that ended stays, frozen, until its end was seen: also by the next runner.
        args.option("-action", "shutdown=pause,panic=pause,reboot=reset");
        args.option(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
        args.0
    }

    fn processor(&self, args: &mut Args) {
        let accel = match self.accel {
            VmAccel::Kvm => "kvm".to_owned(),
            VmAccel::Tcg => {
                let others = TRANSLATED_MIB_EACH * self.cpus.saturating_sub(1);
                format!("tcg,tb-size={}", TRANSLATED_MIB + others)
            }
        };
        args.option("-accel", accel);
        let machine = "sata=off,smbus=off,i8042=off,vmport=off,hpet=off,memory-backend=memory";
        args.option("-machine", format!("q35,{machine}"));
        // What the processor can virtualise is not for guests: their kernels would load for nothing.
        let model = match self.accel {
            VmAccel::Kvm => "host,migratable=off",
            VmAccel::Tcg => "max,svm=off",
        };
        args.option("-cpu", model);
        args.option("-smp", self.cpus.to_string());
        let mebibytes = self.memory_bytes >> 20;
        args.option("-m", format!("{mebibytes}M"));
        let bound = self.numa.map_or(String::new(), |n| format!(",host-nodes={n},policy=bind"));
        args.option("-object", format!("memory-backend-ram,id=memory,size={mebibytes}M{bound}"));
        args.option("-rtc", "base=utc");
    }

    fn boot(&self, args: &mut Args) {
        match &self.boot {
            Boot::Bios => {}
            Boot::Uefi { code } => {
                let file = "if=pflash,format=raw,unit=0,readonly=on,file=";
                args.joined("-drive", file, code);
                args.option("-drive", format!("if=pflash,format=raw,unit=1,file={UEFI_VARIABLES}"));
            }
            Boot::Kernel { kernel, initrd, cmdline } => {
                args.option("-kernel", kernel);
                if let Some(initrd) = initrd {
                    args.option("-initrd", initrd);
                }
                args.option("-append", cmdline);
            }
        }
    }
}

fn disks(args: &mut Args, disk: &str, agent_disk: Option<&OsString>) {
    // What the guest gives up is given up on the node's disk too.
    args.option(
        "-blockdev",
        format!(
            "driver=qcow2,node-name={ROOT_NODE},discard=unmap,detect-zeroes=unmap,\
             file.driver=file,file.filename={disk},file.discard=unmap"
        ),
    );
    args.option(
        "-device",
        format!("virtio-blk-pci,drive={ROOT_NODE},id={ROOT_DEVICE},bootindex=1"),
    );
    args.option(
        "-blockdev",
        format!("driver=raw,node-name=seed,read-only=on,file.driver=file,file.filename={SEED}"),
    );
    args.option("-device", "virtio-blk-pci,drive=seed");
    if let Some(path) = agent_disk {
        let file = "driver=raw,node-name=agent,read-only=on,file.driver=file,file.filename=";
        args.joined("-blockdev", file, path);
        args.option("-device", "virtio-blk-pci,drive=agent");
    }
}

/// The ways to speak to QEMU, to the guest's console and to a guest agent where it has one.
fn channels(args: &mut Args) {
    let socket =
        |id: &str, name: &str| format!("socket,id={id},path={RUN_DIR}/{name},server=on,wait=off");
    args.option("-chardev", socket("qmp", QMP_SOCKET));
    args.option("-mon", "chardev=qmp,mode=control");
    let console = socket("console", CONSOLE_SOCKET);
    let log = format!("{console},logfile={RUN_DIR}/{CONSOLE_LOG},logappend=on");
    args.option("-chardev", log);
    args.option("-serial", "chardev:console");
    args.option("-device", "virtio-serial-pci");
    args.option("-chardev", socket("guest-agent", GUEST_AGENT_SOCKET));
    args.option("-device", "virtserialport,chardev=guest-agent,name=org.qemu.guest_agent.0");
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn word(&mut self, word: &str) {
        self.0.push(word.into());
    }

    fn words(&mut self, words: &[String]) {
        self.0.extend(words.iter().map(OsString::from));
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.word(name);
        self.0.push(value.into());
    }

    /// A path as the last part of an option. QEMU takes a comma for the next part unless it is
    /// written twice.
    fn joined(&mut self, name: &str, before: &str, path: &OsString) {
        use std::os::unix::ffi::{OsStrExt, OsStringExt};
        let mut value = before.as_bytes().to_vec();
        for byte in path.as_bytes() {
            value.push(*byte);
            if *byte == b',' {
                value.push(b',');
            }
        }
        self.option(name, OsString::from_vec(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            name: "vps-7".to_owned(),
            accel: VmAccel::Tcg,
            cpus: 2,
            memory_bytes: 256 << 20,
            numa: None,
            boot: Boot::Bios,
            disk: DISK.to_owned(),
            agent_disk: Some("../../agent,1.img".into()),
            nic: vec!["-netdev".to_owned(), "user,id=net".to_owned()],
            devices: Vec::new(),
        }
    }

    fn text(machine: &Machine) -> String {
        let words: Vec<_> =
            machine.args().iter().map(|word| word.to_string_lossy().into_owned()).collect();
        words.join(" ")
    }

    #[test]
    fn a_path_with_a_comma_stays_one_path() {
        assert!(text(&machine()).contains("file.filename=../../agent,,1.img "));
    }

    #[test]
    fn memory_is_bound_only_where_a_numa_node_is_asked_for() {
        assert!(text(&machine()).contains("id=memory,size=256M -rtc"));
        let bound = Machine { numa: Some(1), accel: VmAccel::Kvm, ..machine() };
        assert!(text(&bound).contains("id=memory,size=256M,host-nodes=1,policy=bind"));
        assert!(text(&bound).contains("-accel kvm ") && text(&bound).contains("-cpu host"));
    }

    #[test]
    fn an_emulated_machines_translations_are_bounded_and_idle_processors_take_no_part_of_them() {
        assert!(text(&machine()).contains("-accel tcg,tb-size=66 "));
        let large = text(&Machine { cpus: 64, ..machine() });
        assert!(large.contains("-accel tcg,tb-size=190 "), "{large}");
        assert!(!text(&Machine { accel: VmAccel::Kvm, ..machine() }).contains("tb-size"));
    }

    #[test]
    fn each_way_to_boot_says_what_it_needs() {
        assert!(!text(&machine()).contains("-kernel") && !text(&machine()).contains("pflash"));
        let boot = Boot::Uefi { code: "/x/CODE.fd".into() };
        assert!(text(&Machine { boot, ..machine() }).contains("readonly=on,file=/x/CODE.fd"));
        let cmdline = "root=/dev/vda quiet".to_owned();
        let boot = Boot::Kernel { kernel: "k".into(), initrd: None, cmdline };
        assert!(
            text(&Machine { boot, ..machine() }).contains("-kernel k -append root=/dev/vda quiet")
        );
    }
}
