//! A cluster as a team runs it: reachable from the network, people log in, by https.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

use crate::http::{Answer, Connection, connect, exchange};
use crate::process::{Output, Server, run};
use crate::site::{BUSYBOX, Site};
use crate::wait_until;

const PASSWORD: &str = "correct horse battery";

/// The host, one node and the first admin. Dropping it stops and removes everything.
#[derive(Debug)]
pub struct Guarded {
    // In the order in which they must go.
    pub runner: Server,
    pub host: Server,
    pub site: Site,
    pub root: Person,
    tls: Arc<ClientConfig>,
}

/// Somebody with an account.
#[derive(Clone, Debug)]
pub struct Person {
    pub id: i64,
    pub name: String,
    /// Of the session that registering began.
    pub cookie: String,
    pub token: String,
    pub token_id: i64,
}

impl Person {
    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    pub fn password(&self) -> &'static str {
        PASSWORD
    }
}

impl Guarded {
    pub fn start() -> Self {
        Self::start_on(Site::new())
    }

    pub fn start_on(mut site: Site) -> Self {
        let mut host = site.team_host();
        let line = host.wait_for_line("auth register");
        let words = line.split_once("--token ").expect("an invitation").1;
        let invitation = words.split_whitespace().next().expect("a token").to_owned();
        site.trust_host();
        let tls = believing(&site);
        let root = register(&tls, site.port(), "root", &invitation);
        let made =
            ask(&tls, site.port(), Some(&root), "POST", "/api/nodes/tokens", &json!({})).ok();
        let joining = made.json()["token"].as_str().expect("a join token").to_owned();
        let mut runner = site.runner("n1", &["--join", &joining]);
        runner.wait_for_line("connected to the host");
        let guarded = Self { runner, host, site, root, tls };
        wait_until("the node is online", Duration::from_secs(10), || {
            guarded.get(Some(&guarded.root), "/api/nodes").json()[0]["status"] == "online"
        });
        guarded
    }

    /// Makes an account of that role.
    pub fn person(&self, name: &str, role: &str) -> Person {
        let invited = self.post(Some(&self.root), "/api/auth/invitations", &json!({"role": role}));
        let invitation = invited.ok().json()["token"].as_str().expect("an invitation").to_owned();
        register(&self.tls, self.site.port(), name, &invitation)
    }

    /// A connection to the API's port.
    pub fn connect(&self) -> Connection {
        connect(&self.tls, self.site.port(), "127.0.0.1")
    }

    /// A request with headers of the test's choice and nothing else.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        exchange(&mut self.connect(), method, path, headers, body)
    }

    /// A request as somebody; as nobody without one.
    pub fn ask(&self, who: Option<&Person>, method: &str, path: &str, body: &Value) -> Answer {
        ask(&self.tls, self.site.port(), who, method, path, body)
    }

    pub fn get(&self, who: Option<&Person>, path: &str) -> Answer {
        self.ask(who, "GET", path, &Value::Null)
    }

    pub fn post(&self, who: Option<&Person>, path: &str, body: &Value) -> Answer {
        self.ask(who, "POST", path, body)
    }

    pub fn delete(&self, who: Option<&Person>, path: &str) -> Answer {
        self.ask(who, "DELETE", path, &Value::Null)
    }

    /// Asks for the connection to become something else; answers the status of the answer.
    pub fn knock(&self, headers: &[(&str, &str)], path: &str, protocol: &str) -> u16 {
        let upgrade = [
            ("Connection", "upgrade"),
            ("Upgrade", protocol),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        self.send("GET", path, &[&upgrade, headers].concat(), b"").status
    }

    /// The command line as that person uses it.
    pub fn command(&self, who: &Person) -> Command {
        let mut command = self.site.command();
        command.env("KOHAKURIVER_TOKEN", &who.token);
        command
    }

    pub fn kr(&self, who: &Person, arguments: &[&str]) -> Output {
        run(self.command(who).args(arguments))
    }

    /// Runs a line of shell as root inside, as its owner does.
    pub fn inside(&self, who: &Person, vps: &str, line: &str) -> Output {
        self.kr(who, &["terminal", "exec", vps, "--", "sh", "-c", line])
    }

    /// Has a running VPS of that person's made, with more settings than its image.
    pub fn vps(&self, who: &Person, name: &str, settings: &Value) -> String {
        let mut wish = json!({"name": name, "registry_image": BUSYBOX});
        for (key, value) in settings.as_object().into_iter().flatten() {
            wish[key] = value.clone();
        }
        let made = self.post(Some(who), "/api/vps/create?wait=false", &wish).ok().json();
        let id = made["task_id"].as_str().expect("an id is text").to_owned();
        let status = || self.get(Some(who), &format!("/api/status/{id}")).json()["status"].clone();
        if status() == "pending_approval" {
            self.post(Some(&self.root), &format!("/api/approve/{id}"), &json!({})).ok();
        }
        wait_until("the VPS runs", Duration::from_secs(60), || status() == "running");
        id
    }

    /// Shares a VPS of `owner`'s at that level.
    pub fn share(&self, owner: &Person, vps: &str, with: &Person, level: &str) {
        let wish = json!({"user": with.name, "level": level});
        self.ask(Some(owner), "PUT", &format!("/api/vps/{vps}/shares"), &wish).ok();
    }
}

fn ask(
    tls: &Arc<ClientConfig>,
    port: u16,
    who: Option<&Person>,
    method: &str,
    path: &str,
    body: &Value,
) -> Answer {
    let bearer = who.map(Person::bearer);
    let mut headers = vec![("Content-Type", "application/json")];
    headers.extend(bearer.as_deref().map(|value| ("Authorization", value)));
    let body = if body.is_null() { String::new() } else { body.to_string() };
    exchange(&mut connect(tls, port, "127.0.0.1"), method, path, &headers, body.as_bytes())
}

fn register(tls: &Arc<ClientConfig>, port: u16, name: &str, invitation: &str) -> Person {
    let path = format!("/api/auth/register?token={invitation}");
    let body = json!({"username": name, "password": PASSWORD});
    let answer = ask(tls, port, None, "POST", &path, &body).ok();
    let cookies = answer.headers("set-cookie");
    let cookie = cookies.first().and_then(|line| line.split(';').next()).expect("a session begins");
    let id = answer.json()["user"]["id"].as_i64().expect("an id");
    let headers = [("Content-Type", "application/json"), ("Cookie", cookie)];
    let mut stream = connect(tls, port, "127.0.0.1");
    let body = json!({"name": "test"}).to_string();
    let path = "/api/auth/tokens/create";
    let made = exchange(&mut stream, "POST", path, &headers, body.as_bytes()).ok().json();
    Person {
        id,
        name: name.to_owned(),
        cookie: cookie.to_owned(),
        token: made["token"].as_str().expect("a token").to_owned(),
        token_id: made["id"].as_i64().expect("a number"),
    }
}

/// Believes the site's own CA and nobody else.
fn believing(site: &Site) -> Arc<ClientConfig> {
    let pem = fs::read(site.data_dir().join("host/ca.pem")).expect("the host's CA");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).expect("a certificate")).expect("a CA");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("usual versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}
