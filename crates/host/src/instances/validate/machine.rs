//! Validates a create's fields for virtual machines.

use kohakuriver_api::{CreateVps, UpdateVps};
use kohakuriver_model::memory::ParseMemoryError;
use kohakuriver_model::name::NameError;
use kohakuriver_model::spec::{
    DEFAULT_VM_DISK_BYTES, DEFAULT_VM_IMAGE, DEFAULT_VM_MEMORY_BYTES, LARGEST_VM_DISK_BYTES,
    SMALLEST_VM_DISK_BYTES, SMALLEST_VM_MEMORY_BYTES,
};
use kohakuriver_model::{BackendKind, ImageSource, InstanceSpec, Memory};

use super::{RequestError, text};

/// QEMU assigns memory in whole megabytes.
const MEMORY_UNIT: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("{0} applies to virtual machines, and this is a container")]
    NotForContainers(&'static str),
    #[error("{0} applies to containers, and this is a virtual machine")]
    NotForMachines(&'static str),
    #[error(
        "a copy runs on its original's backend: that is {}, not {}", .has.word(), .asked.word()
    )]
    OtherBackend { asked: BackendKind, has: BackendKind },
    #[error(transparent)]
    Image(NameError),
    #[error(transparent)]
    DiskSize(#[from] ParseMemoryError),
    #[error(
        "a disk of {disk} is not possible: the size is from {least} to {}",
        Memory::from_bytes(LARGEST_VM_DISK_BYTES)
    )]
    Disk { disk: Memory, least: Memory },
    #[error(
        "a virtual machine needs memory of its own: at least {}, {amount} given",
        Memory::from_bytes(SMALLEST_VM_MEMORY_BYTES)
    )]
    Memory { amount: Memory },
    #[error("{0} is not an amount of memory")]
    MemoryNumber(i64),
}

impl MachineError {
    /// Returns the hint for the error.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotForContainers(_) => "create a virtual machine: --backend qemu",
            Self::NotForMachines(_) => "leave it out",
            Self::OtherBackend { .. } => "leave --backend out",
            Self::Image(_) => "see the images: kohakuriver qemu image list --node NODE",
            Self::DiskSize(_) | Self::Disk { .. } => "for example 20G",
            Self::Memory { .. } | Self::MemoryNumber(_) => "for example 4G",
        }
    }
}

/// Builds the specification: image, memory and disk. A copy has its original's image, and a disk at least as large.
pub fn spec(
    request: &CreateVps,
    original: Option<&InstanceSpec>,
) -> Result<InstanceSpec, RequestError> {
    let containers_only = [
        ("registry_image", text(&request.registry_image).is_some()),
        ("container_name", text(&request.container_name).is_some()),
        ("pids_limit", request.pids_limit.is_some()),
        ("on_oom", text(&request.on_oom).is_some()),
        ("privileged", request.privileged == Some(true)),
        ("additional_mounts", request.additional_mounts.as_ref().is_some_and(|m| !m.is_empty())),
    ];
    refuse(containers_only, MachineError::NotForMachines)?;
    let image = match (text(&request.vm_image), original) {
        (Some(_), Some(_)) => return Err(RequestError::ImageAndSnapshot),
        (None, Some(original)) => original.image.clone(),
        (name, None) => {
            let name = name.as_deref().unwrap_or(DEFAULT_VM_IMAGE).parse();
            ImageSource::VmImage { name: name.map_err(MachineError::Image)? }
        }
    };
    Ok(InstanceSpec {
        memory_bytes: Some(requested_memory(request)?),
        vm_disk_bytes: disk(request, original)?,
        ..InstanceSpec::new(image)
    })
}

/// Existing clients send a machine's memory in `memory_mb`; their
/// `required_memory_bytes` beside it is for placement.
fn requested_memory(request: &CreateVps) -> Result<u64, MachineError> {
    let given = |number: Option<i64>| number.filter(|number| *number != 0);
    match (given(request.memory_mb), given(request.required_memory_bytes)) {
        (Some(number), _) => {
            memory(number.checked_mul(1 << 20).ok_or(MachineError::MemoryNumber(number))?)
        }
        (None, Some(bytes)) => memory(bytes),
        (None, None) => Ok(DEFAULT_VM_MEMORY_BYTES),
    }
}

/// Rounds up to whole megabytes and checks the minimum.
pub fn memory(bytes: i64) -> Result<u64, MachineError> {
    let amount = u64::try_from(bytes).map_err(|_| MachineError::MemoryNumber(bytes))?;
    let whole = amount.next_multiple_of(MEMORY_UNIT);
    if whole < SMALLEST_VM_MEMORY_BYTES {
        return Err(MachineError::Memory { amount: Memory::from_bytes(amount) });
    }
    Ok(whole)
}

fn disk(request: &CreateVps, original: Option<&InstanceSpec>) -> Result<Option<u64>, MachineError> {
    let Some(size) = text(&request.vm_disk_size) else {
        return Ok(original.map_or(Some(DEFAULT_VM_DISK_BYTES), |spec| spec.vm_disk_bytes));
    };
    let disk = Memory::parse_in('G', &size)?;
    let least = original.and_then(|spec| spec.vm_disk_bytes).unwrap_or(SMALLEST_VM_DISK_BYTES);
    if disk.bytes() < least || disk.bytes() > LARGEST_VM_DISK_BYTES {
        return Err(MachineError::Disk { disk, least: Memory::from_bytes(least) });
    }
    Ok(Some(disk.bytes()))
}

pub fn refuse_for_containers(request: &CreateVps) -> Result<(), MachineError> {
    let machines_only = [
        ("vm_image", text(&request.vm_image).is_some()),
        ("vm_disk_size", text(&request.vm_disk_size).is_some()),
        ("memory_mb", request.memory_mb.is_some_and(|number| number != 0)),
    ];
    refuse(machines_only, MachineError::NotForContainers)
}

pub fn refuse_change(change: &UpdateVps) -> Result<(), MachineError> {
    let containers_only =
        [("pids_limit", change.pids_limit.is_some()), ("on_oom", change.on_oom.is_some())];
    refuse(containers_only, MachineError::NotForMachines)
}

/// Reports the first field that is set and does not apply.
fn refuse<const N: usize>(
    fields: [(&'static str, bool); N],
    error: fn(&'static str) -> MachineError,
) -> Result<(), MachineError> {
    match fields.into_iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(error(field)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{create, update};
    use super::*;

    fn machine() -> CreateVps {
        CreateVps { vps_backend: Some("qemu".into()), ..CreateVps::default() }
    }

    fn made(request: &CreateVps) -> InstanceSpec {
        create(request, None).unwrap().spec
    }

    #[test]
    fn vm_with_only_a_backend_gets_defaults() {
        let validated = create(&machine(), None).unwrap();
        let spec = validated.spec;
        assert_eq!(spec.image, ImageSource::VmImage { name: "debian-12".parse().unwrap() });
        assert_eq!((spec.memory_bytes, spec.vm_disk_bytes), (Some(4 << 30), Some(20 << 30)));
        assert_eq!(validated.demand.memory_bytes, 4 << 30, "the node's account knows of it");
    }

    #[test]
    fn existing_clients_memory_and_disk_fields_are_accepted() {
        let size = |text: &str| CreateVps { vm_disk_size: Some(text.into()), ..machine() };
        assert_eq!(made(&size("500G")).vm_disk_bytes, Some(500 << 30));
        assert_eq!(made(&size("30")).vm_disk_bytes, Some(30 << 30));
        let both =
            CreateVps { memory_mb: Some(8192), required_memory_bytes: Some(1 << 30), ..machine() };
        assert_eq!(made(&both).memory_bytes, Some(8 << 30));
        let bytes = CreateVps { required_memory_bytes: Some((1 << 30) + 1), ..machine() };
        assert_eq!(made(&bytes).memory_bytes, Some((1 << 30) + (1 << 20)), "whole megabytes");
    }

    #[test]
    fn vm_disk_and_memory_errors_name_the_bounds() {
        let refused = |request: CreateVps| create(&request, None).unwrap_err().to_string();
        let size = |text: &str| CreateVps { vm_disk_size: Some(text.into()), ..machine() };
        assert!(refused(size("512M")).contains("from 1G to 64T"));
        assert!(refused(size("65T")).contains("64T"));
        assert!(refused(size("big")).contains("'big'"));
        assert!(refused(CreateVps { memory_mb: Some(64), ..machine() }).contains("at least 128M"));
        for number in [-1, i64::MAX] {
            let request = CreateVps { memory_mb: Some(number), ..machine() };
            assert!(refused(request).contains("is not an amount"), "{number}");
        }
        let path = CreateVps { vm_image: Some("../x".into()), ..machine() };
        assert!(refused(path).contains("'../x'"));
    }

    #[test]
    fn copy_has_its_originals_image_and_at_least_its_disk() {
        let original = made(&CreateVps {
            vm_image: Some("noble".into()),
            vm_disk_size: Some("40G".into()),
            ..machine()
        });
        let copy = |request: CreateVps| {
            let request = CreateVps { from_vps: Some("web".into()), ..request };
            create(&request, Some(&original)).map(|validated| validated.spec)
        };
        let plain = copy(CreateVps::default()).unwrap();
        assert_eq!((&plain.image, plain.vm_disk_bytes), (&original.image, Some(40 << 30)));
        let larger = CreateVps { vm_disk_size: Some("50".into()), ..CreateVps::default() };
        assert_eq!(copy(larger).unwrap().vm_disk_bytes, Some(50 << 30));
        let smaller = CreateVps { vm_disk_size: Some("30".into()), ..CreateVps::default() };
        assert!(copy(smaller).unwrap_err().to_string().contains("from 40G"));
        let other = CreateVps { vps_backend: Some("docker".into()), ..CreateVps::default() };
        assert!(copy(other).unwrap_err().to_string().contains("that is qemu, not docker"));
        let image = CreateVps { vm_image: Some("debian-12".into()), ..CreateVps::default() };
        assert!(matches!(copy(image), Err(RequestError::ImageAndSnapshot)));
    }

    #[test]
    fn vm_update_refuses_container_fields_and_low_memory() {
        let spec = made(&machine());
        let change = |change: UpdateVps| update(&spec, &change).map_err(|error| error.to_string());
        let memory = |bytes| UpdateVps { required_memory_bytes: Some(bytes), ..Default::default() };
        assert_eq!(change(memory(1 << 30)).unwrap().memory_bytes, Some(1 << 30));
        assert!(change(memory(0)).unwrap_err().contains("memory of its own"));
        let pids = UpdateVps { pids_limit: Some(99), ..Default::default() };
        assert!(change(pids).unwrap_err().contains("pids_limit"));
        let oom = UpdateVps { on_oom: Some("keep".into()), ..Default::default() };
        assert!(change(oom).unwrap_err().contains("on_oom"));
        let cores = UpdateVps { required_cores: Some(3), ..Default::default() };
        assert_eq!(change(cores).unwrap().cores, 3);
    }

    proptest! {
        #[test]
        fn any_text_and_number_validate_without_panic(
            image in "\\PC{0,20}", size in "\\PC{0,20}", mb in any::<i64>(), bytes in any::<i64>()
        ) {
            let request = CreateVps {
                vm_image: Some(image), vm_disk_size: Some(size), memory_mb: Some(mb),
                required_memory_bytes: Some(bytes), ..machine()
            };
            if let Ok(validated) = create(&request, None) {
                prop_assert_eq!(validated.spec.backend(), BackendKind::Qemu);
                prop_assert!(validated.spec.memory_bytes >= Some(SMALLEST_VM_MEMORY_BYTES));
            }
        }
    }
}
