//! The options of `kohakuriver vps create` for virtual machines.

use clap_complete::ArgValueCandidates;
use kohakuriver_model::spec::{
    LARGEST_VM_DISK_BYTES, SMALLEST_VM_DISK_BYTES, SMALLEST_VM_MEMORY_BYTES,
};
use kohakuriver_model::{BackendKind, Memory, VmImageName};

use super::CreateArgs;
use crate::complete;
use crate::error::CommandError;

#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Virtual machines (--backend qemu)")]
pub struct MachineArgs {
    /// Base image, from `kohakuriver qemu image list --node NODE` [default: debian-12].
    #[arg(long, value_name = "NAME", conflicts_with = "from_snapshot", add = ArgValueCandidates::new(complete::vm_images))]
    pub vm_image: Option<VmImageName>,
    /// Disk size in GB or with a unit, for example 100 or 2T [default: 20, or the snapshot's
    /// size].
    #[arg(long, value_name = "SIZE", value_parser = disk)]
    pub vm_disk: Option<String>,
    /// Memory in MB or with a unit, for example 16384 or 16G [default: 4096].
    #[arg(long, value_name = "SIZE", value_parser = memory, conflicts_with = "memory")]
    pub vm_memory: Option<Memory>,
}

impl MachineArgs {
    /// Returns the memory in the API's unit; the parser keeps it within range.
    pub fn megabytes(&self) -> Option<i64> {
        self.vm_memory.and_then(|memory| i64::try_from(memory.bytes().div_ceil(1 << 20)).ok())
    }
}

/// Checks that every option fits the backend.
pub fn check(args: &CreateArgs) -> Result<(), CommandError> {
    let first = |options: &[(&'static str, bool)]| {
        options.iter().find(|(_, given)| *given).map(|(name, _)| *name)
    };
    let machine = &args.machine;
    let for_machines = [
        ("--vm-image", machine.vm_image.is_some()),
        ("--vm-disk", machine.vm_disk.is_some()),
        ("--vm-memory", machine.vm_memory.is_some()),
    ];
    let for_containers = [
        ("--image", args.image.is_some()),
        ("--container", args.container.is_some()),
        ("--pids-limit", args.pids_limit.is_some()),
        ("--on-oom", args.on_oom.is_some()),
        ("--privileged", args.privileged),
        ("--mount", !args.mount.is_empty()),
    ];
    let is_machine = args.backend.as_deref().map(|word| word == BackendKind::Qemu.word());
    match is_machine {
        Some(true) => match first(&for_containers) {
            None => Ok(()),
            Some(option @ ("--image" | "--container")) => Err(CommandError::usage(format!(
                "{option} is for containers, not virtual machines"
            ))
            .hint("use --vm-image for a virtual machine's image")),
            Some(option) => Err(CommandError::usage(format!(
                "{option} is for containers, not virtual machines"
            ))
            .hint("leave it out: a virtual machine's own system sets it")),
        },
        // A copy has its original's backend, which the host knows.
        None if args.from_snapshot.is_some() => Ok(()),
        None | Some(false) => match first(&for_machines) {
            None => Ok(()),
            Some(option) => Err(CommandError::usage(format!(
                "{option} is for virtual machines, not containers"
            ))
            .hint("add --backend qemu, or leave it out")),
        },
    }
}

/// Checks a disk size; the text is sent unchanged.
fn disk(text: &str) -> Result<String, String> {
    let size = Memory::parse_in('G', text).map_err(|error| error.to_string())?;
    let [least, most] = [SMALLEST_VM_DISK_BYTES, LARGEST_VM_DISK_BYTES].map(Memory::from_bytes);
    if size < least || size > most {
        return Err(format!("disk size {size} is out of range: {least} to {most}"));
    }
    Ok(text.to_owned())
}

fn memory(text: &str) -> Result<Memory, String> {
    let memory = Memory::parse_in('M', text).map_err(|error| error.to_string())?;
    let least = Memory::from_bytes(SMALLEST_VM_MEMORY_BYTES);
    if memory < least {
        return Err(format!(
            "{memory} is too little memory for a virtual machine; the minimum is {least}"
        ));
    }
    Ok(memory)
}
