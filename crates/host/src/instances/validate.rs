//! Validates what a client sent into a specification that later stages need not check again.

use kohakuriver_api::{CreateVps, UpdateVps};
use kohakuriver_model::bounds::{
    MAX_ENV_BYTES, MAX_KEY_BYTES, MAX_KEYS, MAX_KEYS_BYTES, MAX_SNAPSHOTS,
};
use kohakuriver_model::memory::SMALLEST_LIMIT;
use kohakuriver_model::name::NameError;
use kohakuriver_model::spec::{DEFAULT_PIDS_LIMIT, ImageError};
use kohakuriver_model::{
    BackendKind, Demand, GpuDemand, ImageSource, InstanceSpec, Memory, MountError, MountWish,
    NodeName, OnOom, SnapshotPolicy, SshAccess,
};

use super::keys;

mod machine;

pub use machine::MachineError;

#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("give either an image or an environment, not both")]
    TwoImages,
    #[error("{0} is not a number of cores")]
    Cores(i64),
    #[error("{0} bytes of memory are too few; the minimum is {SMALLEST_LIMIT}")]
    Memory(i64),
    #[error("a limit of {0} processes is too low to start anything")]
    Pids(u32),
    #[error("'{0}' is not an SSH key mode")]
    KeyMode(String),
    #[error("the request has no public key for the VPS")]
    NoKey,
    #[error("line {line} of the public keys is not an OpenSSH public key")]
    BadKey { line: usize },
    #[error("line {line} of the public keys has more than {MAX_KEY_BYTES} bytes")]
    LongKey { line: usize },
    #[error("too many public keys: at most {MAX_KEYS}, of {MAX_KEYS_BYTES} bytes together")]
    TooManyKeys,
    #[error("cannot keep {0} snapshots of a VPS: at most {MAX_SNAPSHOTS}")]
    Keep(u32),
    #[error("this VPS has no key '{0}'")]
    UnknownKey(String),
    #[error("this VPS has several keys '{0}'")]
    KeyAmbiguous(String),
    #[error("this VPS was created without SSH")]
    NoSsh,
    #[error("'{0}' is not an environment variable's name")]
    EnvName(String),
    #[error("the environment variables have more than {MAX_ENV_BYTES} bytes together")]
    EnvTooLong,
    #[error("there is no backend '{0}'")]
    Backend(String),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("give either GPU numbers or a number of GPUs, not both")]
    TwoGpuWishes,
    #[error("a NUMA node needs its node; give the node too")]
    NumaOfNoNode,
    #[error("GPU {0} is requested twice")]
    GpuTwice(u32),
    #[error("{0} GPUs are more than any node has")]
    TooManyGpus(u32),
    #[error("a copy of a snapshot uses the snapshot's disk; it takes no image")]
    ImageAndSnapshot,
    #[error("from_snapshot needs from_vps")]
    SnapshotOfNothing,
    #[error("'{0}' is not a snapshot name: use lower-case letters, digits and hyphens")]
    SnapshotName(String),
    #[error("a snapshot's message is one line of at most 500 characters")]
    SnapshotMessage,
    #[error("'{0}' is not an out-of-memory policy")]
    OnOom(String),
    #[error("the request changes nothing")]
    NothingToChange,
}

/// A validated create.
#[derive(Clone, Debug)]
pub struct ValidatedCreate {
    pub spec: InstanceSpec,
    pub target: Option<NodeName>,
    pub demand: Demand,
}

/// Nodes have sixteen; more is a typing error.
const MOST_GPUS: u32 = 64;

/// Validates everything about the request that needs no node. `original` is the source of a copy,
/// which runs on the same backend.
pub fn create(
    request: &CreateVps,
    original: Option<&InstanceSpec>,
) -> Result<ValidatedCreate, RequestError> {
    let target: Option<NodeName> =
        text(&request.target_hostname).map(|name| name.parse()).transpose()?;
    if request.from_snapshot.is_some() && request.from_vps.is_none() {
        return Err(RequestError::SnapshotOfNothing);
    }
    if request.target_numa_node_id.is_some() && target.is_none() {
        return Err(RequestError::NumaOfNoNode);
    }
    let spec = match backend(request, original)? {
        BackendKind::Docker => container(request, original)?,
        BackendKind::Qemu => machine::spec(request, original)?,
    };
    let spec = InstanceSpec {
        name: text(&request.name).map(|name| name.parse()).transpose()?,
        cores: cores(request.required_cores)?,
        ssh: ssh(request)?,
        env: environment(request)?,
        snapshots: policy(
            SnapshotPolicy::default(),
            request.keep_snapshots,
            request.snapshot_on_stop,
        )?,
        ..spec
    };
    let demand = Demand {
        cores: spec.cores,
        memory_bytes: spec.memory_bytes.unwrap_or(0),
        gpus: gpus(request)?,
        numa: request.target_numa_node_id,
        backend: spec.backend(),
    };
    Ok(ValidatedCreate { spec, target, demand })
}

fn backend(
    request: &CreateVps,
    original: Option<&InstanceSpec>,
) -> Result<BackendKind, RequestError> {
    let asked = match text(&request.vps_backend).as_deref() {
        None => None,
        Some("docker") => Some(BackendKind::Docker),
        Some("qemu") => Some(BackendKind::Qemu),
        Some(other) => return Err(RequestError::Backend(other.to_owned())),
    };
    match (asked, original.map(InstanceSpec::backend)) {
        (Some(asked), Some(has)) if asked != has => {
            Err(MachineError::OtherBackend { asked, has }.into())
        }
        (Some(backend), _) | (None, Some(backend)) => Ok(backend),
        (None, None) => Ok(BackendKind::default()),
    }
}

/// Builds a container's specification. A copy takes its original's image.
fn container(
    request: &CreateVps,
    original: Option<&InstanceSpec>,
) -> Result<InstanceSpec, RequestError> {
    machine::refuse_for_containers(request)?;
    let image = image(text(&request.registry_image), text(&request.container_name))?;
    let image = match original {
        Some(_) if image != ImageSource::Default => return Err(RequestError::ImageAndSnapshot),
        Some(original) => original.image.clone(),
        None => image,
    };
    Ok(InstanceSpec {
        memory_bytes: memory(request.required_memory_bytes)?,
        pids_limit: pids(request.pids_limit.unwrap_or(DEFAULT_PIDS_LIMIT))?,
        on_oom: on_oom(OnOom::default(), request.on_oom.as_deref())?,
        privileged: request.privileged.unwrap_or(false),
        mounts: MountWish::parse_all(request.additional_mounts.as_deref().unwrap_or_default())?,
        ..InstanceSpec::new(image)
    })
}

/// Returns the text unless it is empty: existing clients send empty texts for absent values.
fn text(value: &Option<String>) -> Option<String> {
    value.clone().filter(|text| !text.is_empty())
}

/// Applies a change to a specification.
pub fn update(spec: &InstanceSpec, change: &UpdateVps) -> Result<InstanceSpec, RequestError> {
    if *change == UpdateVps::default() {
        return Err(RequestError::NothingToChange);
    }
    let mut new = spec.clone();
    if let Some(number) = change.required_cores {
        new.cores = cores(number)?;
    }
    let is_machine = spec.backend() == BackendKind::Qemu;
    if is_machine {
        machine::refuse_change(change)?;
    }
    if let Some(bytes) = change.required_memory_bytes {
        new.memory_bytes =
            if is_machine { Some(machine::memory(bytes)?) } else { memory(Some(bytes))? };
    }
    if let Some(limit) = change.pids_limit {
        new.pids_limit = pids(limit)?;
    }
    new.snapshots = policy(new.snapshots, change.keep_snapshots, change.snapshot_on_stop)?;
    new.on_oom = on_oom(new.on_oom, change.on_oom.as_deref())?;
    if change.add_ssh_keys.is_some() || change.remove_ssh_keys.is_some() {
        // The agent of an instance created without SSH reads no keys.
        let access = new.ssh.as_mut().ok_or(RequestError::NoSsh)?;
        if let Some(text) = &change.add_ssh_keys {
            keys::add(&mut access.authorized_keys, text)?;
        }
        for which in change.remove_ssh_keys.iter().flatten() {
            keys::remove(&mut access.authorized_keys, which)?;
        }
    }
    Ok(new)
}

/// Checks a snapshot's name: it goes into the engine's text formats, and must differ from any tag.
pub fn snapshot_name(name: Option<String>) -> Result<Option<String>, RequestError> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if !plain || !starts_well || name.len() > 63 || name == "latest" {
        return Err(RequestError::SnapshotName(name));
    }
    Ok(Some(name))
}

pub fn snapshot_message(message: Option<String>) -> Result<Option<String>, RequestError> {
    let bad = |text: &String| text.chars().count() > 500 || text.chars().any(char::is_control);
    if message.as_ref().is_some_and(bad) {
        return Err(RequestError::SnapshotMessage);
    }
    Ok(message)
}

fn cores(number: i64) -> Result<u32, RequestError> {
    u32::try_from(number).map_err(|_| RequestError::Cores(number))
}

fn pids(limit: u32) -> Result<u32, RequestError> {
    if limit < 16 { Err(RequestError::Pids(limit)) } else { Ok(limit) }
}

fn policy(
    old: SnapshotPolicy,
    keep: Option<u32>,
    on_stop: Option<bool>,
) -> Result<SnapshotPolicy, RequestError> {
    if let Some(keep) = keep.filter(|keep| *keep as usize > MAX_SNAPSHOTS) {
        return Err(RequestError::Keep(keep));
    }
    Ok(SnapshotPolicy { keep: keep.unwrap_or(old.keep), on_stop: on_stop.unwrap_or(old.on_stop) })
}

fn on_oom(old: OnOom, text: Option<&str>) -> Result<OnOom, RequestError> {
    match text {
        None | Some("") => Ok(old),
        Some("end") => Ok(OnOom::End),
        Some("keep") => Ok(OnOom::KeepRunning),
        Some(other) => Err(RequestError::OnOom(other.to_owned())),
    }
}

fn gpus(request: &CreateVps) -> Result<GpuDemand, RequestError> {
    let indices = request.required_gpus.clone().unwrap_or_default();
    let count = request.gpu_count.filter(|count| *count > 0);
    if let Some(twice) =
        indices.iter().enumerate().find_map(|(at, gpu)| indices[..at].contains(gpu).then_some(*gpu))
    {
        return Err(RequestError::GpuTwice(twice));
    }
    match (indices.is_empty(), count) {
        (true, None) => Ok(GpuDemand::None),
        (true, Some(count)) if count <= MOST_GPUS => Ok(GpuDemand::Count(count)),
        (true, Some(count)) => Err(RequestError::TooManyGpus(count)),
        (false, Some(_)) => Err(RequestError::TwoGpuWishes),
        (false, None) => Ok(GpuDemand::Indices(indices)),
    }
}

fn image(
    registry: Option<String>,
    environment: Option<String>,
) -> Result<ImageSource, RequestError> {
    match (registry, environment) {
        (Some(_), Some(_)) => Err(RequestError::TwoImages),
        (Some(reference), None) => Ok(ImageSource::registry(&reference)?),
        (None, Some(name)) => Ok(ImageSource::environment(&name)?),
        (None, None) => Ok(ImageSource::Default),
    }
}

fn memory(bytes: Option<i64>) -> Result<Option<u64>, RequestError> {
    match bytes {
        // Existing clients send 0 for "no limit".
        None | Some(0) => Ok(None),
        Some(bytes) => match u64::try_from(bytes) {
            Ok(amount) if Memory::from_bytes(amount) >= SMALLEST_LIMIT => Ok(Some(amount)),
            _ => Err(RequestError::Memory(bytes)),
        },
    }
}

fn ssh(request: &CreateVps) -> Result<Option<SshAccess>, RequestError> {
    match request.ssh_key_mode.as_str() {
        "disabled" => Ok(None),
        // Only the image's own accounts; never an empty password.
        "none" => Ok(Some(SshAccess::default())),
        "upload" | "generate" => {
            let text = request.ssh_public_key.as_deref().unwrap_or_default();
            Ok(Some(SshAccess::with_keys(keys::parse(text)?)))
        }
        other => Err(RequestError::KeyMode(other.to_owned())),
    }
}

fn environment(
    request: &CreateVps,
) -> Result<std::collections::BTreeMap<String, String>, RequestError> {
    let mut length = 0;
    for (name, value) in &request.env_vars {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let starts_well = name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
        if !plain || !starts_well || value.contains('\0') {
            return Err(RequestError::EnvName(name.clone()));
        }
        length += name.len() + value.len();
    }
    if length > MAX_ENV_BYTES {
        return Err(RequestError::EnvTooLong);
    }
    Ok(request.env_vars.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(request: &CreateVps) -> String {
        create(request, None).expect_err("it was accepted").to_string()
    }

    #[test]
    fn invalid_field_is_named_in_error() {
        let base = CreateVps::default;
        assert!(refused(&CreateVps { required_cores: -100, ..base() }).contains("-100"));
        assert!(
            refused(&CreateVps { required_memory_bytes: Some(-1), ..base() }).contains("-1 bytes")
        );
        let both = CreateVps {
            registry_image: Some("debian".into()),
            container_name: Some("base".into()),
            ..base()
        };
        assert!(refused(&both).contains("not both"));
        assert!(
            refused(&CreateVps { ssh_key_mode: "upload".into(), ..base() })
                .contains("no public key")
        );
        let bad_key = CreateVps {
            ssh_key_mode: "upload".into(),
            ssh_public_key: Some("\nhello".into()),
            ..base()
        };
        assert!(refused(&bad_key).contains("line 2"));
        assert!(refused(&CreateVps { name: Some("7".into()), ..base() }).contains("'7'"));
    }

    #[test]
    fn key_with_options_or_second_line_is_rejected() {
        let sneaky = "command=\"reboot\" ssh-ed25519 AAAA";
        let request = CreateVps {
            ssh_key_mode: "upload".into(),
            ssh_public_key: Some(sneaky.into()),
            ..CreateVps::default()
        };
        assert!(refused(&request).contains("line 1"));
    }
}
