//! From the engine's answer about a container to what the plan needs to know.

use std::fs;
use std::path::Path;

use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, HostConfig};
use kohakuriver_model::InstanceSpec;

use super::client::{Engine, status};
use super::create_body::LABEL_DISK;
use crate::backend::{BackendError, BackendState, Lifecycle, Limits};
use crate::clock;

/// `None`: the answer describes no container.
pub async fn read(
    engine: &Engine,
    answer: &ContainerInspectResponse,
) -> Result<Option<BackendState>, BackendError> {
    let Some(state) = &answer.state else { return Ok(None) };
    let started = state.started_at.clone().filter(|text| time_ms(text).is_some());
    let started_at_ms = started.as_deref().and_then(time_ms).unwrap_or_default();
    let life = match state.status.unwrap_or(ContainerStateStatusEnum::EMPTY) {
        ContainerStateStatusEnum::RUNNING
        | ContainerStateStatusEnum::RESTARTING
        | ContainerStateStatusEnum::STOPPING => Lifecycle::Running { started_at_ms },
        ContainerStateStatusEnum::PAUSED => Lifecycle::Paused { started_at_ms },
        ContainerStateStatusEnum::CREATED => Lifecycle::Created,
        ContainerStateStatusEnum::EXITED
        | ContainerStateStatusEnum::DEAD
        | ContainerStateStatusEnum::REMOVING
        | ContainerStateStatusEnum::EMPTY => Lifecycle::Ended {
            exit_code: state.exit_code,
            finished_at_ms: state.finished_at.as_deref().and_then(time_ms).unwrap_or_default(),
        },
    };
    let labels = answer.config.as_ref().and_then(|config| config.labels.as_ref());
    let disk = labels.and_then(|labels| labels.get(LABEL_DISK)?.parse().ok()).unwrap_or(0);
    let (oom, epoch) = match life {
        Lifecycle::Running { .. } | Lifecycle::Paused { .. } => {
            (state.pid.is_some_and(kernel_killed), String::new())
        }
        Lifecycle::Created | Lifecycle::Ended { .. } => {
            (state.oom_killed.unwrap_or(false), epoch(engine).await?)
        }
    };
    let limits = answer.host_config.as_ref().map_or(wanted(0, 0, 0), limits_of);
    Ok(Some(BackendState { life, started, disk, oom, limits, epoch }))
}

/// Which run of machine and engine this is. The engine makes its default bridge anew whenever it
/// starts without finding living containers, so the bridge's age tells one run from the next.
async fn epoch(engine: &Engine) -> Result<String, BackendError> {
    let docker = engine.docker().await?;
    let bridge = match docker.inspect_network("bridge", None).await {
        Ok(network) => network.created.unwrap_or_default(),
        // Engines may run without it.
        Err(error) if status(&error) == Some(404) => String::new(),
        Err(error) => return Err(engine.failure(error)),
    };
    Ok(format!("{} {bridge}", clock::boot_id()))
}

/// Docker's own flag is set only at the end, so the kernel's count is asked while it runs.
fn kernel_killed(pid: i64) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .is_ok_and(|text| oom_kills(Path::new("/sys/fs/cgroup"), &text) > 0)
}

/// The count in the control group that `/proc/PID/cgroup` names, of either version.
fn oom_kills(root: &Path, cgroups: &str) -> u64 {
    let file = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let path = path.trim_start_matches('/');
        if controllers.split(',').any(|name| name == "memory") {
            Some(root.join("memory").join(path).join("memory.oom_control"))
        } else if number == "0" && controllers.is_empty() {
            Some(root.join(path).join("memory.events"))
        } else {
            None
        }
    };
    cgroups
        .lines()
        .filter_map(file)
        .filter_map(|path| fs::read_to_string(path).ok())
        .filter_map(|text| {
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())
        })
        .sum()
}

/// Returns the limits of a specification on this backend.
pub fn limits(spec: &InstanceSpec) -> Limits {
    wanted(spec.cores, spec.memory_bytes.unwrap_or(0), spec.pids_limit)
}

fn limits_of(host: &HostConfig) -> Limits {
    let positive = |value: Option<i64>| u64::try_from(value.unwrap_or(0)).unwrap_or(0);
    let cores = u32::try_from(positive(host.nano_cpus) / 1_000_000_000).unwrap_or(u32::MAX);
    let pids = u32::try_from(positive(host.pids_limit)).unwrap_or(u32::MAX);
    wanted(cores, positive(host.memory), pids)
}

/// The engine can raise a limit of a living container but not take it away, so "no limit" is
/// what the machine has.
fn wanted(cores: u32, memory_bytes: u64, pids: u32) -> Limits {
    let machine = crate::inventory::size();
    let within = |amount: u64, most: u64| if amount == 0 { most } else { amount.min(most) };
    Limits {
        cores: u32::try_from(within(u64::from(cores), u64::from(machine.0))).unwrap_or(u32::MAX),
        memory_bytes: within(memory_bytes, machine.1),
        pids,
    }
}

/// Docker writes the year 1 where it means never.
fn time_ms(text: &str) -> Option<i64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    Some(time.as_millisecond()).filter(|ms| *ms > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_is_no_time() {
        assert_eq!(time_ms("0001-01-01T00:00:00Z"), None);
        assert_eq!(time_ms("1970-01-01T00:00:01.5Z"), Some(1500));
    }

    #[test]
    fn the_kernels_count_is_read_from_either_version() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("memory/docker/ab/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
        let first = "11:cpu,cpuacct:/docker/ab\n7:memory:/docker/ab\n0::/docker/ab\n";
        assert_eq!(oom_kills(root.path(), first), 2);
        put("system.slice/x/memory.events", "low 0\noom 3\noom_kill 1\noom_group_kill 0\n");
        assert_eq!(oom_kills(root.path(), "0::/system.slice/x\n"), 1);
        assert_eq!(oom_kills(root.path(), "0::/elsewhere\nnonsense\n"), 0);
    }

    #[test]
    fn no_limit_and_more_than_there_is_are_the_same() {
        let machine = wanted(0, 0, 5);
        assert_eq!(wanted(u32::MAX, u64::MAX, 5), machine);
        assert_eq!(wanted(1, 1 << 26, 5), Limits { cores: 1, memory_bytes: 1 << 26, pids: 5 });
    }
}
