//! From what a client sent to a specification that nothing downstream needs to check again.

use kohakuriver_api::CreateVps;
use kohakuriver_model::memory::SMALLEST_LIMIT;
use kohakuriver_model::name::NameError;
use kohakuriver_model::spec::{DEFAULT_PIDS_LIMIT, ImageError};
use kohakuriver_model::{ImageSource, InstanceSpec, Memory, NodeName, SshAccess};

/// A person has a few keys; a hundred is somebody's mistake.
const MAX_KEYS: usize = 100;
const MAX_KEY_TEXT: usize = 64 * 1024;
const MAX_ENV_TEXT: usize = 64 * 1024;

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
    #[error("{0} bytes of memory are too few: the least is {SMALLEST_LIMIT}")]
    Memory(i64),
    #[error("a limit of {0} processes is too low to start anything")]
    Pids(u32),
    #[error("'{0}' is not a way to set up SSH keys")]
    KeyMode(String),
    #[error("no public key was sent to put into the VPS")]
    NoKey,
    #[error("line {line} of the public keys is not an OpenSSH public key")]
    BadKey { line: usize },
    #[error("too many or too long public keys")]
    TooManyKeys,
    #[error("'{0}' is not a name of an environment variable")]
    EnvName(String),
    #[error("the environment variables are too long")]
    EnvTooLong,
    #[error("the backend '{0}' is not in this version")]
    Backend(String),
    #[error("choosing GPUs is not in this version")]
    Gpus,
    #[error("choosing a NUMA node is not in this version")]
    Numa,
}

/// Checks everything about the request that can be known without asking a node.
pub fn validate(request: &CreateVps) -> Result<(InstanceSpec, Option<NodeName>), RequestError> {
    if request.vps_backend != "docker" {
        return Err(RequestError::Backend(request.vps_backend.clone()));
    }
    if request.required_gpus.as_ref().is_some_and(|gpus| !gpus.is_empty()) {
        return Err(RequestError::Gpus);
    }
    if request.target_numa_node_id.is_some() {
        return Err(RequestError::Numa);
    }
    let text = |value: &Option<String>| value.clone().filter(|text| !text.is_empty());
    let target = text(&request.target_hostname).map(|name| name.parse()).transpose()?;
    let name = text(&request.name).map(|name| name.parse()).transpose()?;
    let cores = u32::try_from(request.required_cores)
        .map_err(|_| RequestError::Cores(request.required_cores))?;
    let pids_limit = request.pids_limit.unwrap_or(DEFAULT_PIDS_LIMIT);
    if pids_limit < 16 {
        return Err(RequestError::Pids(pids_limit));
    }
    let spec = InstanceSpec {
        name,
        image: image(text(&request.registry_image), text(&request.container_name))?,
        cores,
        memory_bytes: memory(request.required_memory_bytes)?,
        pids_limit,
        ssh: ssh(request)?,
        env: environment(request)?,
    };
    Ok((spec, target))
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
        // Only what the image itself lets in; never an empty password.
        "none" => Ok(Some(SshAccess { authorized_keys: Vec::new() })),
        "upload" | "generate" => {
            let keys = request.ssh_public_key.as_deref().unwrap_or_default();
            Ok(Some(SshAccess { authorized_keys: authorized_keys(keys)? }))
        }
        other => Err(RequestError::KeyMode(other.to_owned())),
    }
}

/// Every line must be a key: a typing error should not surface as "permission denied" later.
fn authorized_keys(text: &str) -> Result<Vec<String>, RequestError> {
    if text.len() > MAX_KEY_TEXT {
        return Err(RequestError::TooManyKeys);
    }
    let mut keys = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if russh::keys::PublicKey::from_openssh(line).is_err() {
            return Err(RequestError::BadKey { line: index + 1 });
        }
        keys.push(line.to_owned());
    }
    match keys.len() {
        0 => Err(RequestError::NoKey),
        1..=MAX_KEYS => Ok(keys),
        _ => Err(RequestError::TooManyKeys),
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
    if length > MAX_ENV_TEXT {
        return Err(RequestError::EnvTooLong);
    }
    Ok(request.env_vars.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(request: &CreateVps) -> String {
        validate(request).expect_err("it was accepted").to_string()
    }

    #[test]
    fn each_bad_field_is_named() {
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
    fn a_key_with_options_or_a_second_line_cannot_slip_in() {
        let sneaky = "command=\"reboot\" ssh-ed25519 AAAA";
        let request = CreateVps {
            ssh_key_mode: "upload".into(),
            ssh_public_key: Some(sneaky.into()),
            ..CreateVps::default()
        };
        assert!(refused(&request).contains("line 1"));
    }
}
