//! The container of each instance, identified by its name and labels.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{
    ContainerInspectResponse, ContainerSummary, ContainerUpdateBody, MountPoint,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
};
use kohakuriver_model::InstanceId;
use kohakuriver_runner_link::protocol::Order;

use super::DockerConfig;
use super::client::{Engine, status};
use super::create_body::{LABEL_MANAGED, LABEL_NODE, LABEL_TASK, body};
use super::found;
use super::network::ContainerNetwork;
use super::orphans;
use super::own_files::{Made, OwnFiles, saved};
use super::vet;
use crate::agent_files;
use crate::backend::{BackendError, BackendState, Lifecycle, Limits};
use crate::layout::IN_BIN;

pub fn name(id: InstanceId) -> String {
    format!("kohakuriver-vps-{id}")
}

pub async fn create(
    engine: &Engine,
    config: &DockerConfig,
    servers: &[Ipv4Addr],
    order: &Order,
    image: &str,
) -> Result<(), BackendError> {
    let docker = engine.docker().await?;
    if inspect(engine, order.task_id).await?.is_none() {
        let (own, made) = own_files(config, servers, order.task_id)?;
        own.begin(&made).map_err(|error| unwritable(&error))?;
    }
    let options = CreateContainerOptionsBuilder::default().name(&name(order.task_id)).build();
    match docker.create_container(Some(options), body(config, order, image)).await {
        Ok(created) => {
            for warning in created.warnings {
                tracing::debug!(task.id = %order.task_id, warning, "Docker warned at create");
            }
            Ok(())
        }
        Err(error) => Err(engine.refused("create", error)),
    }
}

/// Brings the container's own files up to date, where nothing has them mounted.
async fn refresh_own_files(
    engine: &Engine,
    docker: &Docker,
    config: &DockerConfig,
    servers: &[Ipv4Addr],
    id: InstanceId,
) -> Result<(), BackendError> {
    let Some(found) = inspect(engine, id).await? else { return Ok(()) };
    let (own, made) = own_files(config, servers, id)?;
    match found.life {
        Lifecycle::Running { .. } | Lifecycle::Paused { .. } => return Ok(()),
        Lifecycle::Created => saved::restore(engine, docker, id, &own, &made).await?,
        Lifecycle::Ended { .. } => {}
    }
    own.refresh(&made).map_err(|error| unwritable(&error))
}

fn own_files(
    config: &DockerConfig,
    servers: &[Ipv4Addr],
    id: InstanceId,
) -> Result<(OwnFiles, Made), BackendError> {
    let hostname = agent_files::written_hostname(&config.layout, id);
    let hostname = hostname.map_err(|error| unwritable(&error))?;
    let node = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let made = Made::new(&id.to_string(), &hostname, servers, &node);
    Ok((OwnFiles::new(config.layout.own(id)), made))
}

fn unwritable(error: &std::io::Error) -> BackendError {
    if error.kind() == std::io::ErrorKind::StorageFull {
        return BackendError::DiskFull { reason: "the runner's data directory is full".to_owned() };
    }
    let reason = format!("cannot write its files in the runner's data directory: {error}");
    BackendError::Refused { by: "this node", act: "start", reason }
}

/// How often what a dead engine left behind is cleared away before the start waits for its turn
/// again.
const CLEARINGS: u32 = 5;

pub async fn start(
    engine: &Engine,
    network: &ContainerNetwork,
    config: &DockerConfig,
    id: InstanceId,
) -> Result<(), BackendError> {
    let docker = engine.docker().await?;
    vet::disk(engine, &docker, id).await?;
    refresh_own_files(engine, &docker, config, network.servers(), id).await?;
    let (mut clearings, mut plugged) = (0, false);
    loop {
        let outcome = docker.start_container(&name(id), None).await;
        match done(engine, "start", outcome, &[304]) {
            Ok(()) => return Ok(()),
            Err(BackendError::Refused { reason, .. })
                if is_without_network(&reason) && !plugged =>
            {
                plugged = true;
                network.plug_in_again(engine, config, id).await?;
            }
            Err(BackendError::Refused { reason, .. }) if orphans::is_left_behind(&reason) => {
                if clearings == CLEARINGS {
                    // containerd clears it away in its own time: the container is not to blame.
                    return Err(BackendError::Unavailable {
                        reason: format!(
                            "it still has a task of the container's earlier run: {reason}"
                        ),
                        hint: "the start is tried again; if that does not help, restart Docker: \
                            systemctl restart docker"
                            .to_owned(),
                    });
                }
                clearings += 1;
                let container = docker.inspect_container(&name(id), None).await;
                let container = container.map_err(|error| engine.failure(error))?;
                if container.state.as_ref().is_some_and(|state| state.running == Some(false)) {
                    let container_id = container.id.unwrap_or_default();
                    let ended = orphans::end(&container_id);
                    // Nothing of it lives, and containerd has had its time.
                    if clearings == CLEARINGS && ended == 0 {
                        orphans::move_aside(&reason, &container_id);
                    }
                }
                tokio::time::sleep(Duration::from_millis(200) * clearings).await;
            }
            refused => return refused,
        }
    }
}

fn is_without_network(reason: &str) -> bool {
    let reason = reason.to_ascii_lowercase();
    reason.contains("network") && reason.contains("not found")
}

pub async fn pause(engine: &Engine, id: InstanceId) -> Result<(), BackendError> {
    let docker = engine.docker().await?;
    let outcome = docker.pause_container(&name(id)).await;
    unless_so_already(engine, id, "pause", outcome, |life| {
        !matches!(life, Lifecycle::Running { .. })
    })
    .await
}

pub async fn resume(engine: &Engine, id: InstanceId) -> Result<(), BackendError> {
    let docker = engine.docker().await?;
    let outcome = docker.unpause_container(&name(id)).await;
    unless_so_already(engine, id, "resume", outcome, |life| {
        !matches!(life, Lifecycle::Paused { .. })
    })
    .await
}

/// Which code the engine answers with where there is nothing to do differs between versions.
async fn unless_so_already(
    engine: &Engine,
    id: InstanceId,
    act: &'static str,
    outcome: Result<(), Error>,
    is_so: impl Fn(&Lifecycle) -> bool,
) -> Result<(), BackendError> {
    let Err(error) = outcome else { return Ok(()) };
    match inspect(engine, id).await? {
        Some(found) if !is_so(&found.life) => Err(engine.refused(act, error)),
        Some(_) | None => Ok(()),
    }
}

pub async fn stop(engine: &Engine, id: InstanceId, grace: Duration) -> Result<(), BackendError> {
    let docker = engine.patient().await?;
    let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
    let options = StopContainerOptionsBuilder::default().t(seconds).build();
    let outcome = docker.stop_container(&name(id), Some(options)).await;
    done(engine, "stop", outcome, &[304, 404])
}

pub async fn kill(engine: &Engine, id: InstanceId) -> Result<(), BackendError> {
    let docker = engine.docker().await?;
    let options = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
    let outcome = docker.kill_container(&name(id), Some(options)).await;
    done(engine, "kill", outcome, &[404, 409])?;
    // The signal is sent; the next look must not find it still running.
    while inspect(engine, id).await?.is_some_and(|found| found.is_running()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

pub async fn resize(engine: &Engine, id: InstanceId, limits: Limits) -> Result<(), BackendError> {
    let docker = engine.docker().await?;
    let memory = i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX);
    let body = ContainerUpdateBody {
        nano_cpus: Some(i64::from(limits.cores) * 1_000_000_000),
        memory: Some(memory),
        memory_swap: Some(memory),
        pids_limit: Some(i64::from(limits.pids)),
        ..ContainerUpdateBody::default()
    };
    done(engine, "resize", docker.update_container(&name(id), body).await, &[])
}

pub async fn remove(engine: &Engine, id: InstanceId) -> Result<(), BackendError> {
    let docker = engine.docker().await?;
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    let outcome = docker.remove_container(&name(id), Some(options)).await;
    // 409: a removal is under way; the next look tells when it is over.
    done(engine, "remove", outcome, &[404, 409])
}

pub async fn inspect(
    engine: &Engine,
    id: InstanceId,
) -> Result<Option<BackendState>, BackendError> {
    let docker = engine.docker().await?;
    match docker.inspect_container(&name(id), None).await {
        Ok(answer) => found::read(engine, &answer).await,
        Err(error) if status(&error) == Some(404) => Ok(None),
        Err(error) => Err(engine.failure(error)),
    }
}

/// This runner's containers; `all`: also those that do not run.
///
/// Labels narrow the list, but prove nothing: another runner's node may have the same name, and an
/// image can bring any label. Ours have their name, and the agent of this runner's data directory.
pub async fn ours(
    engine: &Engine,
    docker: &Docker,
    config: &DockerConfig,
    all: bool,
) -> Result<Vec<(InstanceId, ContainerSummary)>, BackendError> {
    let labels = vec![format!("{LABEL_MANAGED}=true"), format!("{LABEL_NODE}={}", config.node)];
    let filters = HashMap::from([("label".to_owned(), labels)]);
    let options = ListContainersOptionsBuilder::default().all(all).filters(&filters).build();
    let listed = docker.list_containers(Some(options)).await;
    let listed = listed.map_err(|error| engine.failure(error))?;
    let agent = config.layout.agent_dir().to_string_lossy().into_owned();
    let of = |container: ContainerSummary| Some((owner(&container, &agent)?, container));
    Ok(listed.into_iter().filter_map(of).collect())
}

/// The instance that a container is, if it was made by the runner with that agent.
fn owner(container: &ContainerSummary, agent: &str) -> Option<InstanceId> {
    let id: InstanceId = container.labels.as_ref()?.get(LABEL_TASK)?.parse().ok()?;
    let own = format!("/{}", name(id));
    let is_agent = |mount: &MountPoint| {
        mount.destination.as_deref() == Some(IN_BIN) && mount.source.as_deref() == Some(agent)
    };
    let is_ours = container.names.iter().flatten().any(|name| *name == own)
        && container.mounts.iter().flatten().any(is_agent);
    is_ours.then_some(id)
}

/// Where a container has volumes of the engine's in place of its disk.
pub fn volumes(answer: &ContainerInspectResponse) -> Vec<String> {
    let volumes =
        answer.mounts.iter().flatten().filter(|mount| mount.typ.as_deref() == Some("volume"));
    let mut paths: Vec<String> = volumes.filter_map(|mount| mount.destination.clone()).collect();
    paths.sort();
    paths
}

pub async fn outside(engine: &Engine, id: InstanceId) -> Result<Vec<String>, BackendError> {
    let docker = engine.docker().await?;
    match docker.inspect_container(&name(id), None).await {
        Ok(answer) => Ok(volumes(&answer)),
        Err(error) if status(&error) == Some(404) => Ok(Vec::new()),
        Err(error) => Err(engine.failure(error)),
    }
}

pub async fn list(
    engine: &Engine,
    config: &DockerConfig,
) -> Result<Vec<(InstanceId, BackendState)>, BackendError> {
    let docker = engine.docker().await?;
    let mut instances = Vec::new();
    for (id, _) in ours(engine, &docker, config, true).await? {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_belongs_to_the_runner_whose_agent_it_has() {
        let id = InstanceId::from_u64(7);
        let mount = |source: &str| MountPoint {
            source: Some(source.to_owned()),
            destination: Some(IN_BIN.to_owned()),
            ..MountPoint::default()
        };
        let container = |name: &str, source: &str| ContainerSummary {
            names: Some(vec![format!("/{name}")]),
            labels: Some(HashMap::from([(LABEL_TASK.to_owned(), id.to_string())])),
            mounts: Some(vec![mount(source)]),
            ..ContainerSummary::default()
        };
        let own = name(id);
        assert_eq!(owner(&container(&own, "/a/agent"), "/a/agent"), Some(id));
        assert_eq!(owner(&container(&own, "/b/agent"), "/a/agent"), None, "another runner's");
        assert_eq!(owner(&container("x", "/a/agent"), "/a/agent"), None, "a label from an image");
    }
}
