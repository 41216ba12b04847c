//! The requirements of each path of the API. A path without a row here is refused, and fails the
//! test that checks all of them.

use http::Method;
use kohakuriver_model::Role;

use super::policy::Permission;
use crate::accounts::LOG_IN;

/// The check before a path's handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// None: the path is for logging in, or reveals only that this is a KohakuRiver host.
    Public,
    Role(Role),
    /// At least a viewer; the handler then calls `authorize` for the instance that the path names.
    Instance(Permission),
}

/// How a request is recorded in the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    No,
    /// Recorded under this name of the action, before the response is sent.
    Act(&'static str),
}

/// How long a request may last. Any request ends within seconds once its caller loses the right to
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Answered from the host's own data; ended after a minute.
    Brief,
    /// Waits for an event, or sends for as long as there is data.
    Held,
    /// Receives for as long as the client has data.
    Upload,
    /// Turns its connection into a stream, which `open_session` registers.
    Stream,
}

#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub method: &'static str,
    /// The path, in the router's syntax.
    pub path: &'static str,
    pub rule: Rule,
    pub audit: Audit,
    pub life: Life,
}

impl Row {
    const fn lasting(self, life: Life) -> Self {
        Self { life, ..self }
    }

    const fn held(self) -> Self {
        self.lasting(Life::Held)
    }

    const fn stream(self) -> Self {
        self.lasting(Life::Stream)
    }

    /// Returns the least role of every caller.
    pub const fn least_role(&self) -> Role {
        match self.rule {
            Rule::Public => Role::Anony,
            Rule::Role(role) => role,
            Rule::Instance(_) => Role::Viewer,
        }
    }
}

const fn row(method: &'static str, path: &'static str, rule: Rule, audit: Audit) -> Row {
    Row { method, path, rule, audit, life: Life::Brief }
}

const fn get(path: &'static str, rule: Rule) -> Row {
    row("GET", path, rule, Audit::No)
}

const fn act(method: &'static str, path: &'static str, rule: Rule, name: &'static str) -> Row {
    row(method, path, rule, Audit::Act(name))
}

const PUBLIC: Rule = Rule::Public;
const VIEWER: Rule = Rule::Role(Role::Viewer);
const USER: Rule = Rule::Role(Role::User);
const OPERATOR: Rule = Rule::Role(Role::Operator);
const ADMIN: Rule = Rule::Role(Role::Admin);
const SEE: Rule = Rule::Instance(Permission::See);
const ENTER: Rule = Rule::Instance(Permission::Enter);
const CHANGE: Rule = Rule::Instance(Permission::Change);
const DELETE: Rule = Rule::Instance(Permission::Delete);
const SHARE: Rule = Rule::Instance(Permission::Share);

pub const ROWS: &[Row] = &[
    // The cluster.
    get("/api/auth/status", PUBLIC),
    get("/welcome", PUBLIC),
    get("/api/auth/ca", PUBLIC),
    get("/api/health", PUBLIC),
    get("/openapi.json", VIEWER),
    get("/api/nodes", VIEWER),
    get("/api/nodes/{name}", VIEWER),
    get("/api/nodes/{name}/health", VIEWER),
    act("POST", "/api/nodes/{name}/drain", OPERATOR, "node.drain"),
    act("POST", "/api/nodes/{name}/undrain", OPERATOR, "node.undrain"),
    act("PATCH", "/api/nodes/{name}/labels", OPERATOR, "node.label"),
    act("DELETE", "/api/nodes/{name}", ADMIN, "node.remove"),
    act("POST", "/api/nodes/tokens", ADMIN, "node.token"),
    get("/api/vm/images/{hostname}", VIEWER).held(),
    get("/api/vps/vm-instances", ADMIN).held(),
    act("DELETE", "/api/vps/vm-instances/{task}", ADMIN, "vm.cleanup").held(),
    // Accounts.
    act("POST", "/api/auth/login", PUBLIC, LOG_IN),
    act("POST", "/api/auth/logout", PUBLIC, "auth.logout"),
    act("POST", "/api/auth/register", PUBLIC, "auth.register"),
    act("POST", "/api/auth/password/reset", PUBLIC, "auth.password.reset"),
    get("/api/auth/oidc/start", PUBLIC),
    row("GET", "/api/auth/oidc/callback", PUBLIC, Audit::Act("auth.oidc")),
    get("/api/auth/oidc/confirm", PUBLIC),
    act("POST", "/api/auth/oidc/confirm", PUBLIC, "auth.oidc.confirm"),
    act("POST", "/api/auth/oidc/token", PUBLIC, "auth.oidc.cli"),
    get("/api/auth/me", PUBLIC),
    act("POST", "/api/auth/password", VIEWER, "auth.password.change"),
    get("/api/auth/tokens", VIEWER),
    act("POST", "/api/auth/tokens/create", VIEWER, "auth.token.create"),
    act("DELETE", "/api/auth/tokens/{id}", VIEWER, "auth.token.revoke"),
    get("/api/auth/keys", VIEWER),
    act("POST", "/api/auth/keys", VIEWER, "auth.key.add"),
    act("DELETE", "/api/auth/keys/{id}", VIEWER, "auth.key.remove"),
    get("/api/auth/quota", VIEWER),
    get("/api/auth/users", OPERATOR),
    act("PATCH", "/api/auth/users/{id}", ADMIN, "auth.user.update"),
    act("DELETE", "/api/auth/users/{id}", ADMIN, "auth.user.delete"),
    act("POST", "/api/auth/users/{id}/reset", ADMIN, "auth.user.reset"),
    get("/api/auth/users/{id}/quota", OPERATOR),
    get("/api/auth/invitations", ADMIN),
    act("POST", "/api/auth/invitations", OPERATOR, "auth.invite"),
    act("DELETE", "/api/auth/invitations/{id}", ADMIN, "auth.invitation.revoke"),
    get("/api/auth/groups", OPERATOR),
    act("POST", "/api/auth/groups", ADMIN, "auth.group.create"),
    act("PATCH", "/api/auth/groups/{id}", ADMIN, "auth.group.update"),
    act("DELETE", "/api/auth/groups/{id}", ADMIN, "auth.group.delete"),
    act("PUT", "/api/auth/groups/{id}/members/{user}", ADMIN, "auth.group.add"),
    act("DELETE", "/api/auth/groups/{id}/members/{user}", ADMIN, "auth.group.remove"),
    row("GET", "/api/audit", ADMIN, Audit::Act("audit.read")),
    get("/api/audit/verify", ADMIN).held(),
    row("GET", "/api/audit/export", ADMIN, Audit::Act("audit.export")).held(),
    // Approval and sharing.
    get("/api/tasks/pending-approval", OPERATOR),
    act("POST", "/api/approve/{task}", OPERATOR, "vps.approve"),
    act("POST", "/api/reject/{task}", OPERATOR, "vps.reject"),
    act("POST", "/api/vps/{task}/assign", SHARE, "vps.share"),
    act("DELETE", "/api/vps/{task}/assign/{user}", SHARE, "vps.unshare"),
    get("/api/vps/{task}/assignments", SEE),
    act("PUT", "/api/vps/{task}/shares", SHARE, "vps.share"),
    act("DELETE", "/api/vps/{task}/shares", SHARE, "vps.unshare"),
    act("POST", "/api/vps/{task}/owner", SHARE, "vps.give"),
    act("DELETE", "/api/vps/{task}/owner", SHARE, "vps.give.withdraw"),
    // The handlers authorize these by the receiver: they search only the shares and offers made to
    // it.
    get("/api/vps/shares", VIEWER),
    act("POST", "/api/vps/shares/{task}/take", VIEWER, "vps.share.take"),
    act("POST", "/api/vps/shares/{task}/decline", VIEWER, "vps.share.decline"),
    act("POST", "/api/vps/offers/{task}/take", USER, "vps.offer.take"),
    act("POST", "/api/vps/offers/{task}/decline", VIEWER, "vps.offer.decline"),
    // Instances.
    act("POST", "/api/vps/create", USER, "vps.create").held(),
    get("/api/vps", VIEWER),
    get("/api/vps/status", VIEWER),
    get("/api/vps/my", VIEWER),
    get("/api/status/{task}", SEE).held(),
    get("/api/vps/{task}/events", SEE),
    get("/api/vps/{task}/keys", SEE),
    act("POST", "/api/vps/stop/{task}", CHANGE, "vps.stop"),
    act("POST", "/api/vps/{task}/stop", CHANGE, "vps.stop"),
    act("POST", "/api/vps/restart/{task}", CHANGE, "vps.restart").held(),
    act("POST", "/api/vps/pause/{task}", CHANGE, "vps.pause"),
    act("POST", "/api/vps/resume/{task}", CHANGE, "vps.resume"),
    act("POST", "/api/kill/{task}", CHANGE, "vps.kill"),
    act("POST", "/api/command/{task}/{command}", CHANGE, "vps.command").held(),
    act("PATCH", "/api/vps/{task}", CHANGE, "vps.update"),
    act("DELETE", "/api/vps/{task}", DELETE, "vps.delete"),
    get("/api/vps/snapshots/{task}", SEE).held(),
    act("POST", "/api/vps/snapshots/{task}", CHANGE, "snapshot.create").held(),
    act("DELETE", "/api/vps/snapshots/{task}", CHANGE, "snapshot.delete_all").held(),
    get("/api/vps/snapshots/{task}/latest", SEE).held(),
    act("DELETE", "/api/vps/snapshots/{task}/{which}", CHANGE, "snapshot.delete").held(),
    act("POST", "/api/vps/snapshots/{task}/{which}/restore", CHANGE, "snapshot.restore").held(),
    act("POST", "/api/vps/{task}/ssh-cert", ENTER, "ssh.certificate"),
    // Files.
    get("/api/fs/{task}/list", ENTER).held(),
    get("/api/fs/{task}/stat", ENTER).held(),
    row("GET", "/api/fs/{task}/read", ENTER, Audit::Act("file.read")).held(),
    row("GET", "/api/fs/{task}/raw", ENTER, Audit::Act("file.read")).held(),
    act("POST", "/api/fs/{task}/mkdir", ENTER, "file.mkdir").held(),
    act("POST", "/api/fs/{task}/rename", ENTER, "file.rename").held(),
    act("DELETE", "/api/fs/{task}/delete", ENTER, "file.delete").held(),
    act("POST", "/api/fs/{task}/write", ENTER, "file.write").held(),
    act("PUT", "/api/fs/{task}/raw", ENTER, "file.write").lasting(Life::Upload),
    // Sessions. Their beginnings and ends are recorded where they are opened.
    get("/api/vps/{task}/stream", ENTER).stream(),
    get("/ws/task/{task}/terminal", ENTER).stream(),
    get("/ws/task/{task}/session", ENTER).stream(),
    get("/ws/forward/{task}/{port}", ENTER).stream(),
    get("/ws/fs/{task}/watch", ENTER).stream(),
];

/// Returns method and path of every row, for the test that checks all of them.
pub fn policy_rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROWS.iter().map(|row| (row.method, row.path))
}

/// Returns the rows of long-lived requests, for the test that revokes their right.
pub fn lasting_rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lasting = ROWS.iter().filter(|row| row.life != Life::Brief);
    lasting.map(|row| (row.method, row.path))
}

/// Returns the row of a request; HEAD is treated as GET.
pub fn find(method: &Method, path: &str) -> Option<&'static Row> {
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    ROWS.iter().find(|row| row.method == method && row.path == path)
}

/// Returns the methods that a path has rows for.
pub fn methods(path: &str) -> Vec<&'static str> {
    ROWS.iter().filter(|row| row.path == path).map(|row| row.method).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_has_two_rows() {
        for (at, row) in ROWS.iter().enumerate() {
            let again = ROWS[..at].iter().any(|r| r.method == row.method && r.path == row.path);
            assert!(!again, "{} {}", row.method, row.path);
        }
    }

    #[test]
    fn changing_routes_are_audited() {
        for row in ROWS.iter().filter(|row| row.method != "GET") {
            assert_ne!(row.audit, Audit::No, "{} {}", row.method, row.path);
        }
    }

    #[test]
    fn head_is_judged_as_get() {
        assert!(find(&Method::HEAD, "/api/vps").is_some());
        assert!(find(&Method::PUT, "/api/vps").is_none());
    }
}
