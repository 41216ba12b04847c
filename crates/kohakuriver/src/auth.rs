//! The flags that say whether people log in, and what follows where none is given: whoever can
//! be reached from the network asks who one is.

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
    /// People log in, and are admins, operators, users or viewers [default where the host can be
    /// reached from the network]
    #[arg(long, conflicts_with = "no_auth")]
    auth: bool,
    /// Nobody logs in: whoever reaches this host may do everything [default on loopback]
    #[arg(long)]
    no_auth: bool,
    /// With --no-auth on an address that can be reached from the network: yes, everybody there
    /// may do everything
    #[arg(long)]
    open_to_the_network_without_login: bool,
    /// Days after which a request that no operator decided on is rejected
    #[arg(long, value_name = "DAYS", default_value_t = 14, value_parser = clap::value_parser!(u64).range(1..=3650))]
    request_days: u64,
    /// Let people log in by OpenID Connect with this provider, as it calls itself
    #[arg(
        long,
        value_name = "URL",
        requires = "oidc_client_id",
        requires = "public_url",
        conflicts_with = "no_auth"
    )]
    oidc_issuer: Option<String>,
    /// What this host is to the provider
    #[arg(long, value_name = "ID", requires = "oidc_issuer")]
    oidc_client_id: Option<String>,
    /// File with the secret that the provider gave for it
    #[arg(long, value_name = "FILE", requires = "oidc_issuer")]
    oidc_client_secret_file: Option<PathBuf>,
    /// The role of everybody in one of the provider's groups, for example staff=operator; may be
    /// repeated, the highest counts
    #[arg(long, value_name = "GROUP=ROLE", value_parser = group_role, requires = "oidc_issuer")]
    oidc_role: Vec<(String, Role)>,
    /// The role of everybody else the provider knows [default: none, they stay out]
    #[arg(long, value_name = "ROLE", value_parser = role, requires = "oidc_issuer")]
    oidc_default_role: Option<Role>,
    /// The claim of the provider that lists groups: a name, or a path such as realm_access.roles
    #[arg(long, value_name = "NAME", default_value = "groups")]
    oidc_groups_claim: String,
    /// A scope to ask the provider for beside openid; may be repeated [default: profile, email, and
    /// groups where the provider announces it]
    #[arg(long, value_name = "SCOPE", requires = "oidc_issuer")]
    oidc_scope: Vec<String>,
    /// Days after which a person of the provider must log in there again: their sessions, tokens and
    /// SSH keys do not count until then
    #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3650))]
    oidc_login_days: u64,
    /// Where people reach this host, for example https://river.lab.example
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// Hours that a browser stays logged in
    #[arg(long, value_name = "HOURS", default_value_t = 720, value_parser = clap::value_parser!(u64).range(1..=87600))]
    session_hours: u64,
}

impl AuthArgs {
    /// What was asked for, or what fits where the host listens.
    ///
    /// # Errors
    /// It would be open to everybody and nobody has said so outright.
    pub fn mode(&self, bind: IpAddr, behind_proxy: bool) -> Result<AuthConfig, Exit> {
        let reachable = !bind.is_loopback() || behind_proxy;
        let open = self.open_to_the_network_without_login;
        let off = self.no_auth || (open && !self.auth);
        if reachable && off && !open {
            let message =
                format!("{bind} can be reached from the network, and nobody would log in");
            let hint = "leave --no-auth out, keep --bind 127.0.0.1 and come in by an SSH tunnel, \
                or say --open-to-the-network-without-login too";
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
                let message = format!("'{url}' must be https, or on this machine");
                return Err(Exit::new(USAGE, message));
            }
        }
        if self.oidc_role.is_empty() && self.oidc_default_role.is_none() {
            let message = "nobody of the provider would have a role here";
            return Err(Exit::new(USAGE, message)
                .hint("say --oidc-role GROUP=ROLE, or --oidc-default-role ROLE"));
        }
        if let Some(scope) = self.oidc_scope.iter().find(|scope| !is_scope(scope)) {
            return Err(Exit::new(USAGE, format!("'{scope}' is not a scope"))
                .hint("one word each: --oidc-scope profile --oidc-scope groups"));
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

/// One word of RFC 6749, 3.3.
fn is_scope(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\'))
}

fn role(text: &str) -> Result<Role, String> {
    let role: Role = text.parse().map_err(|error| format!("{error}"))?;
    if role == Role::Anony { Err("nobody has that role".to_owned()) } else { Ok(role) }
}

fn group_role(text: &str) -> Result<(String, Role), String> {
    let (group, word) = text.rsplit_once('=').ok_or("write GROUP=ROLE")?;
    Ok((group.to_owned(), role(word)?))
}

/// What to tell whoever starts a host that nobody administrates yet.
pub async fn setup_lines(host: &Host) -> Result<Option<[String; 2]>, Exit> {
    let invited = host.setup_invitation().await;
    let invited = invited.map_err(|error| Exit::from_error(NOT_READY, &error))?;
    Ok(invited.map(|token| {
        let place = host.api_url();
        // Copied as a whole, so nobody has to compare it by eye.
        let believed = host.people_fingerprint().map(|is| format!(" --fingerprint {is}"));
        let believed = believed.unwrap_or_default();
        [
            format!("nobody administrates this cluster yet: open {place}/welcome#invite={token}"),
            format!(
                "or type kohakuriver auth register {place} --token {token}{believed}   (once, within a day)"
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
    fn a_scope_is_one_word() {
        assert!(is_scope("groups") && is_scope("https://lab.example/scope"));
        assert!(!is_scope("") && !is_scope("openid groups") && !is_scope("a\"b"));
    }

    #[test]
    fn what_the_network_can_reach_asks_who_one_is_unless_somebody_says_otherwise_outright() {
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
