//! On the runners' link, with and without somebody's key.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_e2e::{Guarded, connect, node_addresses, wait_until};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

const SERVER_NAME: &str = "kohakuriver-host.internal";

fn identity(directory: &Path) -> Value {
    let text = fs::read_to_string(directory.join("runner/identity.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// What a node of the cluster believes, with that certificate and key or with none.
fn settings(ca: &Value, own: Option<&Value>, protocol: &[u8]) -> Arc<ClientConfig> {
    let pem = |value: &Value| value.as_str().unwrap().as_bytes().to_vec();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem(&ca["ca_pem"])).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let certificate =
                CertificateDer::from_pem_slice(&pem(&own["certificate_pem"])).unwrap();
            let key = PrivateKeyDer::from_pem_slice(&pem(&own["key_pem"])).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

/// Whether the host keeps such a connection, and waits for what is said on it.
fn is_let_in(port: u16, config: &Arc<ClientConfig>) -> bool {
    let mut stream = connect(config, port, SERVER_NAME);
    stream.sock.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    match stream.read(&mut [0; 64]) {
        Ok(0) => false,
        Ok(_) => true,
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

#[test]
fn s3_nobody_without_a_nodes_key_speaks_with_the_host_as_a_node() {
    let (ours, theirs) = (Guarded::start(), Guarded::start());
    let port = ours.site.link_port();
    let own = identity(&ours.site.runner_dir("n1"));
    let foreign = identity(&theirs.site.runner_dir("n1"));
    for protocol in [&b"kr-ctl/1"[..], b"kr-data/1"] {
        assert!(is_let_in(port, &settings(&own, Some(&own), protocol)), "with a node's key");
        assert!(!is_let_in(port, &settings(&own, None, protocol)), "with none");
        assert!(!is_let_in(port, &settings(&own, Some(&foreign), protocol)), "of another cluster");
        // A certificate is no secret: it does not help without its key.
        let mut stolen = own.clone();
        stolen["key_pem"] = foreign["key_pem"].clone();
        let refused = std::panic::catch_unwind(|| settings(&own, Some(&stolen), protocol));
        assert!(refused.is_err(), "the library itself sees that these do not belong together");
    }
    // People's port believes no node, and nodes are no people.
    assert_eq!(ours.get(None, "/api/nodes").status, 401);
    let nodes = ours.get(Some(&ours.root), "/api/nodes").json();
    assert_eq!(nodes.as_array().unwrap().len(), 1);
}

#[test]
fn s3_a_node_with_its_own_key_is_itself_whatever_it_calls_itself() {
    let cluster = Guarded::start();
    let token = || {
        let made = cluster.post(Some(&cluster.root), "/api/nodes/tokens", &json!({})).ok();
        made.json()["token"].as_str().unwrap().to_owned()
    };
    let id = cluster.vps(&cluster.root, "web", &json!({}));
    let spent = token();
    let mut second = cluster.site.runner("n2", &["--join", &spent]);
    second.wait_for_line("connected to the host");
    second.kill();
    let status = |name: &str| {
        let nodes = cluster.get(Some(&cluster.root), "/api/nodes").json();
        let found = nodes.as_array().unwrap().iter().find(|node| node["hostname"] == name);
        found.map(|node| node["status"].clone()).unwrap_or_default()
    };
    wait_until("the second is away", Duration::from_secs(40), || status("n2") != "online");
    // Stolen from the second machine, and dressed up as the first.
    let directory = cluster.site.runner_dir("n2");
    let mut liar = identity(&directory);
    let first = identity(&cluster.site.runner_dir("n1"));
    (liar["node_id"], liar["node_name"]) = (first["node_id"].clone(), first["node_name"].clone());
    fs::write(directory.join("runner/identity.json"), liar.to_string()).unwrap();
    let lie = cluster.site.runner("n2", &[]);
    wait_until("it is the second all the same", Duration::from_secs(10), || {
        status("n2") == "online"
    });
    assert_eq!(status("n1"), "online", "the first is not put out");
    cluster.inside(&cluster.root, &id, "true").ok();
    assert_eq!(cluster.get(Some(&cluster.root), "/api/status/web").json()["status"], "running");
    drop(lie);
    // The token that it joined by is spent, for whatever name.
    for name in ["n3", "n1"] {
        let place = format!("elsewhere-{name}");
        let mut again = cluster.site.command();
        again.args(["runner", "--name", name, "--join", &spent, "--data-dir"]);
        let mut again = kohakuriver_e2e::Server::start(again.arg(cluster.site.runner_dir(&place)));
        assert_ne!(again.wait(), 0, "{}", again.log());
        assert!(again.log().contains("already used"), "{}", again.log());
    }
    // A good token does not give a name that is taken.
    let fresh = token();
    let mut thief = cluster.site.command();
    thief.args(["runner", "--name", "n1", "--join", &fresh, "--data-dir"]);
    let mut thief = kohakuriver_e2e::Server::start(thief.arg(cluster.site.runner_dir("thief")));
    assert_ne!(thief.wait(), 0, "{}", thief.log());
    assert!(thief.log().contains("n1"), "{}", thief.log());
    // One that lives a second is dead after two; one that nobody made never lived.
    let short = cluster.post(Some(&cluster.root), "/api/nodes/tokens", &json!({"ttl_seconds": 1}));
    let short = short.ok().json()["token"].as_str().unwrap().to_owned();
    std::thread::sleep(Duration::from_secs(2));
    let mut late = cluster.site.runner("late", &["--join", &short]);
    assert_ne!(late.wait(), 0);
    assert!(late.log().contains("expired"), "{}", late.log());
    let nodes = cluster.get(Some(&cluster.root), "/api/nodes").json();
    assert_eq!(nodes.as_array().unwrap().len(), 2, "{nodes}");
}

#[test]
fn s3_a_node_that_was_removed_is_out_with_its_key() {
    let cluster = Guarded::start();
    let own = identity(&cluster.site.runner_dir("n1"));
    let port = cluster.site.link_port();
    assert!(is_let_in(port, &settings(&own, Some(&own), b"kr-data/1")));
    cluster.delete(Some(&cluster.root), "/api/nodes/n1").ok();
    wait_until("the key opens nothing", Duration::from_secs(5), || {
        !is_let_in(port, &settings(&own, Some(&own), b"kr-data/1"))
    });
}

#[test]
fn s2_s8_s18_from_inside_a_vps_neither_host_nor_node_nor_a_neighbour_is_within_reach() {
    let cluster = Guarded::start();
    let (alice, mallory) = (cluster.person("alice", "user"), cluster.person("mallory", "user"));
    let victim = cluster.vps(&alice, "victim", &json!({"ssh_key_mode": "none"}));
    let evil = cluster.vps(&mallory, "evil", &json!({}));
    let ports = [cluster.site.port(), cluster.site.link_port(), cluster.site.ssh_port()];
    // An address that is gone with another test's network leads outside the node, where anything may
    // answer.
    let is_fixed = |address: &String| !cluster.site.is_of_another_site(address);
    for address in node_addresses().into_iter().filter(is_fixed) {
        for port in ports {
            let line = format!("nc -w 2 {address} {port} </dev/null >/dev/null 2>&1");
            let reached = cluster.inside(&mallory, &evil, &line).code == 0;
            // An address that another test's network took along is somebody else's meanwhile.
            assert!(!reached || !node_addresses().contains(&address), "{address}:{port}");
        }
    }
    // They are open, to who is not inside.
    for port in ports {
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    }
    let address = cluster.inside(&alice, &victim, "hostname -i").ok();
    let line = format!("nc -w 2 {} 22 </dev/null", address.trim());
    assert_ne!(cluster.inside(&mallory, &evil, &line).code, 0, "a neighbour's agent answered");
    // Keys of the node, orders and other VPSes' sockets are nowhere in its tree.
    let find = "find / -xdev \\( -name identity.json -o -name order.json -o -name 'host.db*' -o -name ca.pem \\) 2>/dev/null";
    assert_eq!(cluster.inside(&mallory, &evil, find).stdout, "");
    let sockets = "find / -name '*.sock' -not -path '/proc/*' 2>/dev/null";
    assert_eq!(cluster.inside(&mallory, &evil, sockets).stdout, "/.kohakuriver/run/agent.sock\n");
    // Whoever takes the place of the own agent gets what is for the own VPS, and no more.
    let take = "rm -f /.kohakuriver/run/agent.sock && mkdir /.kohakuriver/run/agent.sock";
    cluster.inside(&mallory, &evil, take).ok();
    assert_ne!(cluster.inside(&mallory, &evil, "true").code, 0);
    assert_eq!(cluster.inside(&alice, &victim, "echo well").ok(), "well\n");
}
