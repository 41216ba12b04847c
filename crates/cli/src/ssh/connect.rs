//! `kohakuriver ssh VPS`: replaces this process by the user's ssh.

use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::Command;

use kohakuriver_api::Task;

use super::route::Route;
use super::{How, certificate};
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::vps::vocabulary::{self, called};

pub async fn run(context: &Context, vps: &VpsRef, how: &How) -> Result<(), CommandError> {
    let task = reachable(context, vps).await?;
    let port = how.proxy_port.unwrap_or(context.settings.ssh_proxy_port.value);
    let route = Route::to(context, &task, port)?;
    let mut ssh = Command::new("ssh");
    // A key on the command line replaces all others.
    let pair = match &how.key {
        Some(_) => None,
        None => certificate::for_login(context, &task).await?,
    };
    for (keyword, value) in pair.map_or(Ok(Vec::new()), |pair| pair.options())? {
        ssh.arg("-o").arg(format!("{keyword}={value}"));
    }
    if let Some(key) = &how.key {
        if !key.exists() {
            return Err(CommandError::usage(format!("there is no key {}", key.display()))
                .hint("leave out --key to use ssh's own keys"));
        }
        ssh.arg("-i").arg(key);
    }
    for (keyword, value) in &route.options {
        if *keyword == "IdentityFile" && how.key.is_some() {
            continue;
        }
        ssh.arg("-o").arg(format!("{keyword}={value}"));
    }
    // After `--`, ssh parses no part of the command as an option.
    ssh.args(["-l", &how.user, &route.alias]);
    if !how.command.is_empty() {
        ssh.arg("--").args(&how.command);
    }
    // From here on this process is ssh, which handles the terminal, signals and exit code.
    let error = ssh.exec();
    if error.kind() == ErrorKind::NotFound {
        return Err(CommandError::missing_program(
            "the program ssh is not installed on this computer",
        )
        .hint("install the OpenSSH client, for example the package openssh-client"));
    }
    Err(CommandError::request(format!("ssh cannot be started: {error}")))
}

/// Returns the VPS, or an error if SSH cannot connect to it now.
pub async fn reachable(context: &Context, vps: &VpsRef) -> Result<Task, CommandError> {
    let task = context.api.task_to_enter(vps.as_str()).await.map_err(vocabulary::with_list_hint)?;
    let name = called(&task);
    if !vocabulary::has_ssh(&task) {
        return Err(CommandError::request(format!("VPS {name} was created without SSH"))
            .hint("create one with `kohakuriver vps create --ssh`"));
    }
    let hint = match task.status.as_str() {
        "running" => return Ok(task),
        "assigning" | "pending" => {
            format!("`kohakuriver vps status {name} --watch` shows its progress")
        }
        "lost" => {
            "its node is not connected; `kohakuriver node list` shows which nodes are".to_owned()
        }
        "paused" => format!("`kohakuriver vps resume {name}` resumes it"),
        "stopped" | "failed" | "killed" | "killed_oom" => {
            format!("`kohakuriver vps restart {name}` starts it again")
        }
        _ => format!("`kohakuriver vps status {name}` shows details"),
    };
    Err(CommandError::request(format!("VPS {name} is {}, not running", task.status)).hint(hint))
}
