//! The output of `kohakuriver vps create`.

use std::path::{Path, PathBuf};

use kohakuriver_api::Task;

use super::create::PENDING;
use super::vocabulary::{called, has_ssh, is_machine};
use crate::context::Context;
use crate::error::CommandError;
use crate::identity;
use crate::keys::MadeKey;
use crate::ssh::shell_word;

/// Saves the key pair and prints the private key's path.
pub fn say_key(context: &Context, made: Option<MadeKey>) -> Option<PathBuf> {
    let path = made?.keep();
    context.out.note(format!("new private key: {}", path.display()));
    Some(path)
}

/// Removes an unused key pair. Saves it if the VPS may exist although no response arrived, because
/// this key may be the only one that gives access.
pub fn refused(context: &Context, failure: CommandError, made: Option<MadeKey>) -> CommandError {
    if !failure.maybe_done {
        return failure;
    }
    let look = "`kohakuriver vps list -a` shows whether the VPS was created";
    let Some(path) = say_key(context, made) else {
        return failure.hint(look);
    };
    let path = shell_word(&path.to_string_lossy());
    failure.hint(format!("{look}; `kohakuriver ssh NAME -i {path}` logs in to it"))
}

pub fn summary(context: &Context, task: &Task, key: Option<&Path>) {
    let out = context.out;
    let name = called(task);
    if task.status == PENDING {
        out.line(format!("VPS {name} waits for an operator's approval"));
        out.line(format!("  id    {}", task.task_id));
        out.hint(format!("`kohakuriver vps status {name} --watch` shows the decision"));
        out.hint(format!("`kohakuriver vps delete {name}` withdraws the request"));
        return;
    }
    let node = task.assigned_node.as_deref().unwrap_or("a node to be chosen");
    let running = task.status == "running";
    let state = if running { "is running on" } else { "is being created on" };
    out.line(format!("VPS {name} {state} {node}"));
    out.line(format!("  id    {}", task.task_id));
    if is_machine(task) {
        out.line(format!("  vm    {}", machine(task)));
    }
    if has_ssh(task) {
        out.line(format!("  ssh   kohakuriver ssh {name}"));
        out.line(format!("  or    {}", plain_ssh(context, name, key)));
    }
    if let Some(warning) = &task.warning {
        out.note(format!("note: {warning}"));
    }
    if !running {
        out.hint(format!("`kohakuriver vps status {name} --watch` shows its progress"));
        if is_machine(task) {
            out.hint(format!("`kohakuriver terminal attach {name}` shows its console"));
        }
    }
}

/// Formats a virtual machine's details: `debian-12, 20G of disk, at 10.0.0.2`.
fn machine(task: &Task) -> String {
    let disk = task.vm_disk_size.as_ref().map(|size| format!("{size} of disk"));
    let address = task.vm_ip.as_ref().map(|address| format!("at {address}"));
    [task.vm_image.clone(), disk, address].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Formats a login with plain OpenSSH, which needs the path of a key generated here.
fn plain_ssh(context: &Context, name: &str, key: Option<&Path>) -> String {
    let host = context.settings.host.value.bracketed();
    let port = context.settings.ssh_proxy_port.value;
    let user = identity::login().unwrap_or_else(|| "you".to_owned());
    let key = key.map(|path| format!("-i {} ", shell_word(&path.to_string_lossy())));
    format!("ssh {}-J {user}@{host}:{port} root@{name}", key.unwrap_or_default())
}
