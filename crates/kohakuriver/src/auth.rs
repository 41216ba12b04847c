//! The options for accounts and login. By default a host that the network can connect to requires a
//! login.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use kohakuriver_host::{AuthConfig, Host, OidcConfig};
use kohakuriver_model::Role;

use crate::exit::{Exit, NOT_READY, USAGE};

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Logging in")]
pub struct AuthArgs {
    /// Require a login, with the roles admin, operator, user and viewer [default if the network can
    /// connect to the host].
    #[arg(long, conflicts_with = "no_auth")]
    auth: bool,
    /// Require no login: every client has full access [default on loopback].
    #[arg(long)]
    no_auth: bool,
    /// Confirm --no-auth on an address open to the network, where every client then has full
    /// access.
    #[arg(long)]
    open_to_the_network_without_login: bool,
    /// Days after which an undecided request is rejected.
    #[arg(long, value_name = "DAYS", default_value_t = 14, value_parser = clap::value_parser!(u64).range(1..=3650))]
    request_days: u64,
    /// Issuer URL of an OpenID Connect provider for logins.
    #[arg(
        long,
        value_name = "URL",
        requires = "oidc_client_id",
        requires = "public_url",
        conflicts_with = "no_auth"
    )]
    oidc_issuer: Option<String>,
    /// Client id of this host at the provider.
    #[arg(long, value_name = "ID", requires = "oidc_issuer")]
    oidc_client_id: Option<String>,
    /// File with the client secret from the provider.
    #[arg(long, value_name = "FILE", requires = "oidc_issuer")]
    oidc_client_secret_file: Option<PathBuf>,
    /// Role of the members of a provider's group, for example staff=operator; repeatable, the highest
    /// role applies.
    #[arg(long, value_name = "GROUP=ROLE", value_parser = group_role, requires = "oidc_issuer")]
    oidc_role: Vec<(String, Role)>,
    /// Role of the provider's other accounts [default: none, they cannot log in].
    #[arg(long, value_name = "ROLE", value_parser = role, requires = "oidc_issuer")]
    oidc_default_role: Option<Role>,
    /// Claim of the provider that lists groups: a name, or a path such as realm_access.roles.
    #[arg(long, value_name = "NAME", default_value = "groups")]
    oidc_groups_claim: String,
    /// Scope to request besides openid; repeatable [default: profile, email, and groups if the
    /// provider announces it].
    #[arg(long, value_name = "SCOPE", requires = "oidc_issuer")]
    oidc_scope: Vec<String>,
    /// Days after which a provider's account must log in there again; until then its sessions, tokens
    /// and SSH keys are not accepted.
    #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3650))]
    oidc_login_days: u64,
    /// Public URL of this host, for example https://river.lab.example.
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// Lifetime of a browser's login session in hours.
    #[arg(long, value_name = "HOURS", default_value_t = 720, value_parser = clap::value_parser!(u64).range(1..=87600))]
    session_hours: u64,
}

impl AuthArgs {
    /// Returns the configuration from the options and the listening address.
    ///
    /// # Errors
    /// The host would be open to the network without an explicit confirmation.
    pub fn mode(&self, bind: IpAddr, behind_proxy: bool) -> Result<AuthConfig, Exit> {
        let reachable = !bind.is_loopback() || behind_proxy;
        let open = self.open_to_the_network_without_login;
        let off = self.no_auth || (open && !self.auth);
        if reachable && off && !open {
            let message = format!("{bind} is open to the network, and --no-auth requires no login");
            let hint = "leave out --no-auth, keep --bind 127.0.0.1 and connect by an SSH tunnel, \
                    or add --open-to-the-network-without-login";
            return Err(Exit::new(USAGE, message).hint(hint));
        }
        let hour = Duration::from_secs(3600);
        let hours = |hours: u64| hour * u32::try_from(hours).unwrap_or(u32::MAX);
        Ok(AuthConfig {
            enabled: self.auth || (reachable && !off),
            session_life: hours(self.session_hours),
            request_life: hours(24 * self.request_days),
            oidc: self.oidc()?,
            provider_life: hours(24 * self.oidc_login_days),
        })
    }

    fn oidc(&self) -> Result<Option<OidcConfig>, Exit> {
        let Some(issuer) = self.oidc_issuer.clone() else { return Ok(None) };
        let client_secret = match &self.oidc_client_secret_file {
            None => None,
            Some(path) => Some(fs::read_to_string(path).map_err(|error| {
                Exit::new(USAGE, format!("cannot read {}: {error}", path.display()))
            })?),
        };
        let public_url = self.public_url.clone().unwrap_or_default();
        for url in [&issuer, &public_url] {
            if !kohakuriver_host::is_safe_url(url) {
                let message = format!("'{url}' must use https, or be on this computer");
                return Err(Exit::new(USAGE, message));
            }
        }
        if self.oidc_role.is_empty() && self.oidc_default_role.is_none() {
            let message = "no account of the provider would have a role";
            return Err(Exit::new(USAGE, message)
                .hint("add --oidc-role GROUP=ROLE or --oidc-default-role ROLE"));
        }
        if let Some(scope) = self.oidc_scope.iter().find(|scope| !is_scope(scope)) {
            return Err(Exit::new(USAGE, format!("'{scope}' is not a scope"))
                .hint("give each scope its own option: --oidc-scope profile --oidc-scope groups"));
        }
        Ok(Some(OidcConfig {
            issuer,
            client_id: self.oidc_client_id.clone().unwrap_or_default(),
            client_secret: client_secret.map(|text| text.trim().to_owned()),
            public_url: public_url.trim_end_matches('/').to_owned(),
            groups_claim: self.oidc_groups_claim.clone(),
            scopes: self.oidc_scope.clone(),
            roles: self.oidc_role.clone(),
            default_role: self.oidc_default_role,
        }))
    }
}

/// Returns whether the text is a scope token of RFC 6749, 3.3.
fn is_scope(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\'))
}

fn role(text: &str) -> Result<Role, String> {
    let role: Role = text.parse().map_err(|error| format!("{error}"))?;
    if role == Role::Anony {
        Err("this role cannot be given to accounts".to_owned())
    } else {
        Ok(role)
    }
}

fn group_role(text: &str) -> Result<(String, Role), String> {
    let (group, word) = text.rsplit_once('=').ok_or("write GROUP=ROLE")?;
    Ok((group.to_owned(), role(word)?))
}

/// Returns the instructions to register the first admin, if the cluster has none.
pub async fn setup_lines(host: &Host) -> Result<Option<[String; 2]>, Exit> {
    let invited = host.setup_invitation().await;
    let invited = invited.map_err(|error| Exit::from_error(NOT_READY, &error))?;
    Ok(invited.map(|token| {
        let place = host.api_url();
        // Part of the copied command, so that no manual comparison is needed.
        let believed = host.people_fingerprint().map(|is| format!(" --fingerprint {is}"));
        let believed = believed.unwrap_or_default();
        [
            format!("this cluster has no admin yet: open {place}/welcome#invite={token}"),
            format!(
                "or run kohakuriver auth register {place} --token {token}{believed}   (once, within a day)"
            ),
        ]
    }))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        auth: AuthArgs,
    }

    fn enabled(flags: &str, bind: &str, proxy: bool) -> Option<bool> {
        let words = std::iter::once("host").chain(flags.split_whitespace());
        let args = Line::try_parse_from(words).unwrap().auth;
        args.mode(bind.parse().unwrap(), proxy).ok().map(|config| config.enabled)
    }

    #[test]
    fn scope_is_a_single_token() {
        assert!(is_scope("groups") && is_scope("https://lab.example/scope"));
        assert!(!is_scope("") && !is_scope("openid groups") && !is_scope("a\"b"));
    }

    #[test]
    fn network_address_requires_login_unless_explicitly_open() {
        let open = "--open-to-the-network-without-login";
        for (flags, bind, proxy, expected) in [
            ("", "127.0.0.1", false, Some(false)),
            ("--auth", "127.0.0.1", false, Some(true)),
            ("--no-auth", "127.0.0.1", false, Some(false)),
            ("", "0.0.0.0", false, Some(true)),
            ("", "127.0.0.1", true, Some(true)),
            ("--no-auth", "0.0.0.0", false, None),
            ("--no-auth", "127.0.0.1", true, None),
            (open, "0.0.0.0", false, Some(false)),
            (&format!("--no-auth {open}"), "10.0.0.5", false, Some(false)),
            (&format!("--auth {open}"), "10.0.0.5", false, Some(true)),
        ] {
            assert_eq!(enabled(flags, bind, proxy), expected, "{flags} {bind} {proxy}");
        }
    }
}
