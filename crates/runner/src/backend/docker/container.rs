//! One container per instance, found again by its name and its labels.

use std::collections::HashMap;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, ContainerState, ContainerStateStatusEnum, HostConfig, HostConfigLogConfig,
    Mount, MountType, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
    StopContainerOptionsBuilder,
};
use kohakuriver_link::protocol::Order;
use kohakuriver_model::{NodeName, TaskId};

use super::DockerConfig;
use super::client::{Engine, status};
use crate::agent_files::hostname;
use crate::backend::{BackendError, Found, Life};
use crate::layout::{AGENT_NAME, IN_BIN, IN_ETC, IN_RUN, IN_SHARED};

pub const LABEL_MANAGED: &str = "kohakuriver.managed";
pub const LABEL_TASK: &str = "kohakuriver.task_id";
const LABEL_TYPE: &str = "kohakuriver.task_type";
const LABEL_NODE: &str = "kohakuriver.node";
const LABEL_NAME: &str = "kohakuriver.name";
/// Docker's 64 MiB make PyTorch's data loaders fail; memory used there counts to the limit anyway.
const SHM_BYTES: u64 = 1 << 30;

pub fn name(id: TaskId) -> String {
    format!("kohakuriver-vps-{id}")
}

pub async fn create(
    engine: &Engine,
    config: &DockerConfig,
    order: &Order,
    image: &str,
) -> Result<(), BackendError> {
    let docker = engine.docker().await?;
    let options = CreateContainerOptionsBuilder::default().name(&name(order.task_id)).build();
    match docker.create_container(Some(options), body(config, order, image)).await {
        Ok(created) => {
            for warning in created.warnings {
                tracing::debug!(task_id = %order.task_id, warning, "Docker warned at create");
            }
            Ok(())
        }
        Err(error) => Err(engine.refused("create", error)),
    }
}

pub async fn start(engine: &Engine, id: TaskId) -> Result<(), BackendError> {
    let docker = engine.docker().await?;
    done(engine, "start", docker.start_container(&name(id), None).await, &[304])
}

pub async fn stop(engine: &Engine, id: TaskId, grace: Duration) -> Result<(), BackendError> {
    let docker = engine.patient().await?;
    let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
    let options = StopContainerOptionsBuilder::default().t(seconds).build();
    let outcome = docker.stop_container(&name(id), Some(options)).await;
    done(engine, "stop", outcome, &[304, 404])
}

pub async fn remove(engine: &Engine, id: TaskId) -> Result<(), BackendError> {
    let docker = engine.docker().await?;
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    let outcome = docker.remove_container(&name(id), Some(options)).await;
    // 409: a removal is under way; the next look tells when it is over.
    done(engine, "remove", outcome, &[404, 409])
}

pub async fn inspect(engine: &Engine, id: TaskId) -> Result<Option<Found>, BackendError> {
    let docker = engine.docker().await?;
    match docker.inspect_container(&name(id), None).await {
        Ok(answer) => Ok(answer.state.as_ref().map(found)),
        Err(error) if status(&error) == Some(404) => Ok(None),
        Err(error) => Err(engine.failure(error)),
    }
}

pub async fn list(engine: &Engine, node: &NodeName) -> Result<Vec<(TaskId, Found)>, BackendError> {
    let docker = engine.docker().await?;
    let labels = vec![format!("{LABEL_MANAGED}=true"), format!("{LABEL_NODE}={node}")];
    let filters = HashMap::from([("label".to_owned(), labels)]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let containers =
        docker.list_containers(Some(options)).await.map_err(|error| engine.failure(error))?;
    let ids = containers
        .iter()
        .filter_map(|container| container.labels.as_ref()?.get(LABEL_TASK)?.parse::<TaskId>().ok());
    let mut instances = Vec::new();
    for id in ids {
        if let Some(found) = inspect(engine, id).await? {
            instances.push((id, found));
        }
    }
    Ok(instances)
}

fn done(
    engine: &Engine,
    act: &'static str,
    outcome: Result<(), Error>,
    as_good_as_done: &[u16],
) -> Result<(), BackendError> {
    match outcome {
        Ok(()) => Ok(()),
        Err(error) if status(&error).is_some_and(|code| as_good_as_done.contains(&code)) => Ok(()),
        Err(error) => Err(engine.refused(act, error)),
    }
}

fn body(config: &DockerConfig, order: &Order, image: &str) -> ContainerCreateBody {
    let spec = &order.spec;
    let id = order.task_id;
    let mut labels = HashMap::from([
        (LABEL_MANAGED.to_owned(), "true".to_owned()),
        (LABEL_TASK.to_owned(), id.to_string()),
        (LABEL_TYPE.to_owned(), "vps".to_owned()),
        (LABEL_NODE.to_owned(), config.node.to_string()),
    ]);
    if let Some(name) = &spec.name {
        labels.insert(LABEL_NAME.to_owned(), name.to_string());
    }
    let env = spec
        .env
        .iter()
        .filter(|(key, value)| is_variable(key) && !value.contains('\0'))
        .map(|(key, value)| format!("{key}={value}"))
        .chain([format!("KOHAKURIVER_TASK_ID={id}")])
        .collect();
    ContainerCreateBody {
        image: Some(image.to_owned()),
        hostname: Some(hostname(spec, id)),
        user: Some("0:0".to_owned()),
        working_dir: Some("/".to_owned()),
        entrypoint: Some(vec![format!("{IN_BIN}/{AGENT_NAME}"), "agent".to_owned()]),
        // An image's own command would become the agent's arguments.
        cmd: Some(Vec::new()),
        env: Some(env),
        labels: Some(labels),
        stop_signal: Some("SIGTERM".to_owned()),
        host_config: Some(host_config(config, order)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(config: &DockerConfig, order: &Order) -> HostConfig {
    let (spec, layout, id) = (&order.spec, &config.layout, order.task_id);
    let memory = spec.memory_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    let shm = spec.memory_bytes.map_or(SHM_BYTES, |bytes| (bytes / 2).min(SHM_BYTES));
    HostConfig {
        nano_cpus: (spec.cores > 0).then(|| i64::from(spec.cores) * 1_000_000_000),
        memory,
        memory_swap: memory,
        pids_limit: Some(i64::from(spec.pids_limit)),
        shm_size: i64::try_from(shm).ok(),
        mounts: Some(vec![
            bind(&layout.agent_dir(), IN_BIN, true),
            bind(&layout.etc(id), IN_ETC, true),
            bind(&layout.run(id), IN_RUN, false),
            bind(&layout.shared_data(), IN_SHARED, false),
        ]),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        // The agent's own log; bounded, because nobody rotates it.
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), "5m".to_owned()),
                ("max-file".to_owned(), "2".to_owned()),
            ])),
        }),
        ..HostConfig::default()
    }
}

fn bind(source: &std::path::Path, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Mount::default()
    }
}

fn is_variable(key: &str) -> bool {
    let mut bytes = key.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn found(state: &ContainerState) -> Found {
    let started = state.started_at.clone().filter(|text| time_ms(text).is_some());
    let started_at_ms = started.as_deref().and_then(time_ms).unwrap_or_default();
    let status = state.status.unwrap_or(ContainerStateStatusEnum::EMPTY);
    let life = match status {
        ContainerStateStatusEnum::RUNNING
        | ContainerStateStatusEnum::PAUSED
        | ContainerStateStatusEnum::RESTARTING
        | ContainerStateStatusEnum::STOPPING => Life::Running { started_at_ms },
        ContainerStateStatusEnum::CREATED => Life::Created,
        ContainerStateStatusEnum::EXITED
        | ContainerStateStatusEnum::DEAD
        | ContainerStateStatusEnum::REMOVING
        | ContainerStateStatusEnum::EMPTY => Life::Ended {
            exit_code: state.exit_code,
            finished_at_ms: state.finished_at.as_deref().and_then(time_ms).unwrap_or_default(),
        },
    };
    Found { life, started }
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
    fn only_names_of_variables_become_variables() {
        for good in ["A", "_x1", "PATH"] {
            assert!(is_variable(good));
        }
        for bad in ["", "1A", "A B", "A=B", "A-B", "A\0"] {
            assert!(!is_variable(bad), "{bad:?}");
        }
    }
}
