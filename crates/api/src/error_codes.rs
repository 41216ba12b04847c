//! Every value of `code` in an error response, with cause and remedy.
//!
//! docs/reference/errors.md is generated from this table. The host asserts in its tests that it
//! answers no other code.

/// An error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode {
    pub code: &'static str,
    pub cause: &'static str,
    pub remedy: &'static str,
}

/// Finds the entry of a code.
pub fn error_code(code: &str) -> Option<&'static ErrorCode> {
    let index = ERROR_CODES.binary_search_by(|known| known.code.cmp(code)).ok()?;
    ERROR_CODES.get(index)
}

const fn entry(code: &'static str, cause: &'static str, remedy: &'static str) -> ErrorCode {
    ErrorCode { code, cause, remedy }
}

/// All codes, in alphabetical order.
pub const ERROR_CODES: &[ErrorCode] = &[
    entry(
        "agent_silent",
        "The agent inside the VPS did not answer after its start.",
        "Restart the VPS; `kohakuriver vps status` has the last lines of its log.",
    ),
    entry(
        "ambiguous",
        "The text given matches more than one VPS or snapshot.",
        "Give more of the id, or the snapshot's tag; the hint lists the candidates.",
    ),
    entry(
        "auth_off",
        "The host runs without accounts, so there is nothing to log in to.",
        "Use the API without credentials, or start the host with `--auth`.",
    ),
    entry(
        "bad_key",
        "The SSH public key cannot be certified: its text or its type is not accepted.",
        "Send one OpenSSH public key line, for example the content of `~/.ssh/id_ed25519.pub`.",
    ),
    entry("busy", "The host answers as many requests as it can.", "Try again after a few seconds."),
    entry(
        "changed",
        "The request was changed after it was displayed, so the approval would not be for what was read.",
        "Read it again with `kohakuriver approval show`, then decide.",
    ),
    entry(
        "conflict",
        "Another request changed the same row, or the name is taken.",
        "Read the object again and repeat the change.",
    ),
    entry(
        "connection_lost",
        "The connection to the VPS ended before the operation did.",
        "See whether the VPS runs with `kohakuriver vps status`, then repeat.",
    ),
    entry(
        "decided",
        "The request was approved, rejected or withdrawn already.",
        "See `kohakuriver approval list`.",
    ),
    entry(
        "deleting",
        "The VPS is being deleted.",
        "Nothing: it is gone in a moment. Create another.",
    ),
    entry(
        "denied",
        "The program inside the VPS has no permission for this path.",
        "Choose another path, or change the file's permissions inside the VPS.",
    ),
    entry("disabled", "The account is disabled.", "Ask an admin to enable it."),
    entry(
        "disappeared",
        "The container or VM is no longer on its node.",
        "Delete the VPS and create another, from a snapshot if there is one.",
    ),
    entry(
        "disk_full",
        "The disk of the host, the node or the VPS is full.",
        "Free space where the message says, then repeat.",
    ),
    entry(
        "engine_unavailable",
        "The node's Docker engine or QEMU does not answer.",
        "Run `kohakuriver doctor` on the node.",
    ),
    entry(
        "environment_not_found",
        "The node has no container image for this environment.",
        "See the node's shared storage, or name an image with `--image`.",
    ),
    entry("exists", "A file with this name exists.", "Delete it first, or allow overwriting."),
    entry(
        "failed",
        "The agent inside the VPS could not do it, for a reason it does not know better.",
        "The message has the system's own words; repeat once it is solved.",
    ),
    entry(
        "forbidden_path",
        "The path leaves the folder it has to stay in.",
        "Give an absolute path without `..`.",
    ),
    entry(
        "foreign_origin",
        "The request came from a web page of another site, or through a name this host does not know.",
        "Reach the host by its address, or name it with `--name`.",
    ),
    entry(
        "gpu_unavailable",
        "A GPU that the VPS holds cannot be given to it now.",
        "See `kohakuriver node status`; the message names the card.",
    ),
    entry(
        "has_vps",
        "The account owns VPSes and cannot be deleted.",
        "Delete them, give them to other accounts with `kohakuriver vps give`, or disable the account.",
    ),
    entry(
        "https_only",
        "The port speaks https only, and the request came as http.",
        "Use `https://`.",
    ),
    entry(
        "image_not_found",
        "The registry or the node has no image of this name.",
        "Check the name and tag; `docker pull` on the node shows what its engine answers.",
    ),
    entry(
        "image_unavailable",
        "The image cannot be fetched: its registry does not answer, refuses, or is not allowed on the node.",
        "The message names the registry; an operator can allow it with `--allow-registry`.",
    ),
    entry("internal", "A fault of the host.", "The host's log has the cause; report it."),
    entry(
        "invalid",
        "A field has a value that is not allowed.",
        "The message names the field and the hint what is allowed.",
    ),
    entry(
        "invalid_base64",
        "`content` is not base64.",
        "Encode it as standard base64 with padding, or send `utf-8`.",
    ),
    entry(
        "invalid_body",
        "The body is not the JSON that this path takes.",
        "Compare with the schema in `/openapi.json`.",
    ),
    entry(
        "invalid_query",
        "A query parameter is missing or has a value that is not allowed.",
        "Compare with `/openapi.json`.",
    ),
    entry(
        "invalid_request",
        "The path or a header cannot be read.",
        "Compare with `/openapi.json`.",
    ),
    entry(
        "invalid_response",
        "The agent inside the VPS sent a response that is not valid.",
        "Restart the VPS; if it stays so, its agent was replaced from inside.",
    ),
    entry(
        "invitation",
        "The invitation is unknown, used up or expired.",
        "Ask an admin for another: `kohakuriver auth invite`.",
    ),
    entry("is_directory", "The path is a directory and a file is needed.", "Name a file."),
    entry(
        "key_taken",
        "Another account has registered this SSH key.",
        "Use a key of your own, or remove it there first.",
    ),
    entry(
        "last_admin",
        "The change would leave the cluster without an admin.",
        "Make another account an admin first.",
    ),
    entry(
        "log_in_again",
        "The credential is too weak for this change.",
        "Log in with your password and repeat.",
    ),
    entry("name_taken", "The name is used already.", "Choose another name."),
    entry(
        "needs_operator",
        "Only an operator may have such a VPS: it is privileged or mounts a directory of its node.",
        "Ask an operator, or leave these options out.",
    ),
    entry(
        "no_gpu_runtime",
        "No node has a container runtime for GPUs.",
        "See `kohakuriver node list`; install the NVIDIA container toolkit on the node.",
    ),
    entry("no_machine", "The object is no VM.", "Use the command for containers."),
    entry("no_nodes", "The cluster has no nodes.", "Add one: `kohakuriver node token create`."),
    entry("no_offer", "There is no such offer.", "See `kohakuriver vps shares`."),
    entry(
        "no_own_ca",
        "The host's certificate is not of its own authority, so there is none to hand out.",
        "Trust the authority that signed the host's certificate.",
    ),
    entry("no_pause", "VMs cannot be paused or resumed.", "Stop it instead."),
    entry("no_policy", "No role may call this path.", "Compare the path with `/openapi.json`."),
    entry("no_port", "All SSH ports of the range are in use.", "Delete VPSes that are not needed."),
    entry(
        "no_reset",
        "The password reset is unknown, used or expired.",
        "Ask an admin for another: `kohakuriver auth user reset`.",
    ),
    entry(
        "no_room",
        "No node has what was asked for.",
        "Ask for less; the hint names the nearest fit.",
    ),
    entry("no_snapshot", "There is no such snapshot.", "See `kohakuriver vps snapshot list`."),
    entry(
        "no_ssh",
        "The VPS was created without SSH.",
        "Use `kohakuriver connect`, or create one with `--ssh`.",
    ),
    entry(
        "node",
        "The node failed, or did not answer in time.",
        "Try again; the node's log has the cause.",
    ),
    entry("node_away", "The node is offline.", "See `kohakuriver node list`; start its runner."),
    entry(
        "node_in_use",
        "The node has VPSes and cannot be removed.",
        "Delete them first, or remove it by `--force`.",
    ),
    entry(
        "node_unavailable",
        "The node is offline, draining or not ready for this kind of VPS.",
        "See `kohakuriver node list`, or choose another node.",
    ),
    entry(
        "not_authenticated",
        "The request has no valid credential.",
        "Log in: `kohakuriver auth login`.",
    ),
    entry("not_directory", "A part of the path is no directory.", "Correct the path."),
    entry(
        "not_found",
        "There is no such object, or the account may not know of it.",
        "See the list command for that kind of object.",
    ),
    entry("not_running", "The VPS does not run.", "Start it: `kohakuriver vps restart`."),
    entry(
        "not_shared",
        "The VPS is not shared with that account or group.",
        "See `kohakuriver vps shares`.",
    ),
    entry(
        "not_yours",
        "The account may see the VPS and may not do this to it.",
        "Ask its owner for a share with a higher level.",
    ),
    entry(
        "oidc_off",
        "The host has no log-in provider.",
        "Log in with a password, or configure a provider (`--oidc-issuer`).",
    ),
    entry(
        "oidc_provider",
        "The log-in provider did not answer, or answered with something that is not valid.",
        "Try again; the host's log has the cause.",
    ),
    entry(
        "oidc_refused",
        "The log-in provider or the host's rules refuse this account.",
        "Ask an admin which groups may log in.",
    ),
    entry("oidc_unknown", "The log-in was not started here, or it is too old.", "Start again."),
    entry(
        "outside_disk",
        "The VPS keeps data outside its disk that a restore would lose.",
        "Create another VPS from the snapshot and copy the data with `kohakuriver vps cp`.",
    ),
    entry(
        "over_quota",
        "The account's or its group's quota does not allow it.",
        "Stop or delete something, or ask an admin for more: `kohakuriver auth quota`.",
    ),
    entry("owner_already", "The account owns this VPS already.", "Nothing."),
    entry(
        "owner_gone",
        "The account that made the request is disabled or deleted.",
        "Reject the request.",
    ),
    entry("paused", "The VPS is paused.", "Resume it: `kohakuriver vps resume`."),
    entry("range", "The file is shorter than the range asked for.", "Read its size first."),
    entry(
        "refused",
        "The node or the agent refused; the message says why.",
        "Solve what the message names, then repeat.",
    ),
    entry(
        "revoked",
        "The right to do this was taken away while the request ran.",
        "See your role: `kohakuriver auth whoami`.",
    ),
    entry(
        "role",
        "The account's role, or that of its token, is too low.",
        "`kohakuriver auth whoami` shows yours; an admin can change it.",
    ),
    entry("slow", "The host or the agent did not answer in time.", "Try again."),
    entry("slow_body", "The request's body came too slowly.", "Send it again."),
    entry(
        "snapshot_not_found",
        "The node does not have the snapshot.",
        "See `kohakuriver vps snapshot list`.",
    ),
    entry("stale", "Another request was faster.", "Read the object again and repeat."),
    entry(
        "start_refused",
        "The engine refused to start the VPS.",
        "The message has the engine's own words.",
    ),
    entry("stopping", "The host or the node is stopping.", "Try again in a moment."),
    entry(
        "too_large",
        "The body or a value is larger than allowed.",
        "The hint names the limit or another way.",
    ),
    entry("too_many_offers", "The VPS has as many open offers as allowed.", "Withdraw one."),
    entry(
        "too_many_requests",
        "The account has as many requests running or waiting as allowed.",
        "Wait, or withdraw some.",
    ),
    entry(
        "too_many_shares",
        "The VPS has as many shares as allowed, or the account shares too fast.",
        "Share with a group.",
    ),
    entry(
        "too_many_streams",
        "The account or the host has as many streams open as allowed.",
        "Close terminals, forwards or copies.",
    ),
    entry("too_many_tries", "Too many failed log-ins.", "Wait as long as the message says."),
    entry("unknown_command", "The act is not one this path knows.", "Use `pause` or `resume`."),
    entry("unknown_group", "There is no such group.", "See `kohakuriver auth group list`."),
    entry(
        "unknown_invitation",
        "There is no such invitation.",
        "See `kohakuriver auth invitations`.",
    ),
    entry("unknown_key", "There is no such SSH key.", "See `kohakuriver auth key list`."),
    entry("unknown_node", "There is no node of this name.", "See `kohakuriver node list`."),
    entry("unknown_route", "There is no such path.", "Compare with `/openapi.json`."),
    entry("unknown_token", "There is no such token.", "See `kohakuriver auth token list`."),
    entry("unknown_user", "There is no such account.", "See `kohakuriver auth users`."),
    entry(
        "upgrade_required",
        "The path opens a stream and the request did not ask for the protocol.",
        "Send `Upgrade: kohakuriver-stream`.",
    ),
    entry(
        "which_node",
        "No VPS has this id, so the node that keeps the VM's data has to be named.",
        "Name the node; `kohakuriver qemu instances` lists the data of each.",
    ),
    entry(
        "wrong_method",
        "The path does not know this method.",
        "The `Allow` header lists the methods.",
    ),
    entry(
        "wrong_password",
        "Name or password is wrong.",
        "Try again, or ask an admin for a reset.",
    ),
    entry(
        "wrong_state",
        "The VPS's state does not allow it.",
        "The hint lists what is possible now.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_are_sorted_and_unique() {
        assert!(ERROR_CODES.windows(2).all(|pair| pair[0].code < pair[1].code));
        assert!(ERROR_CODES.iter().all(|known| error_code(known.code) == Some(known)));
    }
}
