//! The configuration of OpenID Connect logins, and values derived from it alone.

use kohakuriver_model::Role;
use reqwest::Url;

/// The configuration of logins by OpenID Connect.
#[derive(Clone)]
pub struct OidcConfig {
    /// The issuer as the provider writes it; its discovery document is below it.
    pub issuer: String,
    pub client_id: String,
    pub client_secret: Option<String>,
    /// The URL at which browsers reach this host, without a slash at the end.
    pub public_url: String,
    /// The claim that lists a user's groups: a name, or a path with dots.
    pub groups_claim: String,
    /// The scopes to request; empty: `profile` and `email`, and `groups` if the provider has it.
    pub scopes: Vec<String>,
    /// The role of each group; the highest counts.
    pub roles: Vec<(String, Role)>,
    /// The role of a user in none of them; `None` refuses the login.
    pub default_role: Option<Role>,
}

impl std::fmt::Debug for OidcConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OidcConfig").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl OidcConfig {
    pub(super) fn callback(&self) -> String {
        format!("{}/api/auth/oidc/callback", self.public_url)
    }

    pub(super) fn role(&self, groups: &[String]) -> Option<Role> {
        let mapped = self.roles.iter().filter(|(group, _)| groups.contains(group));
        mapped.map(|(_, role)| *role).max().or(self.default_role)
    }

    /// Returns the name that links an account to a user of the provider.
    pub(super) fn identity(&self, subject: &str) -> String {
        format!("{} {subject}", normalized(&self.issuer))
    }
}

/// Removes the slash that some configurations write at an issuer's end, and others do not.
pub(super) fn normalized(issuer: &str) -> &str {
    issuer.trim_end_matches('/')
}

/// Returns whether secrets may be sent to the URL: by https, or to this computer.
pub fn is_safe(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| match url.scheme() {
        "https" => true,
        "http" => matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost")),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(issuer: &str) -> OidcConfig {
        OidcConfig {
            issuer: issuer.to_owned(),
            client_id: String::new(),
            client_secret: None,
            public_url: String::new(),
            groups_claim: "groups".to_owned(),
            scopes: Vec::new(),
            roles: vec![("staff".to_owned(), Role::Operator), ("lab".to_owned(), Role::User)],
            default_role: None,
        }
    }

    #[test]
    fn highest_role_of_all_groups_counts() {
        let config = config("");
        let groups = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(config.role(&groups(&["lab", "staff"])), Some(Role::Operator));
        assert_eq!(config.role(&groups(&["lab"])), Some(Role::User));
        assert_eq!(config.role(&groups(&["other"])), None);
        let open = OidcConfig { default_role: Some(Role::Viewer), ..config };
        assert_eq!(open.role(&groups(&["other"])), Some(Role::Viewer));
    }

    #[test]
    fn issuer_with_a_final_slash_is_the_same() {
        let identity = config("https://id.lab").identity("s-1");
        assert_eq!(identity, "https://id.lab s-1");
        assert_eq!(config("https://id.lab/").identity("s-1"), identity);
    }
}
