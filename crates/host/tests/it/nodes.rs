//! Joining, leaving, and node identities.

use std::time::Duration;

use anyhow::Result;
use kohakuriver_runner_link::client::connect_control;
use kohakuriver_runner_link::enroll::{EnrollError, enroll};
use kohakuriver_testkit::{FakeRunner, Reaction, TestHost};
use serde_json::json;

#[tokio::test]
async fn join_token_admits_one_node_once() -> Result<()> {
    let host = TestHost::start().await?;
    let token = host.join_token().await?;
    let dir = tempfile::tempdir()?;
    let now_ms = host.now_ms();
    enroll(&token, None, &"n1".parse()?, dir.path(), now_ms).await?;
    let again = enroll(&token, None, &"n2".parse()?, dir.path(), now_ms).await.unwrap_err();
    let EnrollError::Refused { reason, hint } = again else { panic!("{again:?}") };
    assert!(reason.contains("already used by node 'n1'") && hint.contains("token create"));
    Ok(())
}

#[tokio::test]
async fn expired_token_and_wrong_clock_are_refused_with_hint() -> Result<()> {
    let host = TestHost::start().await?;
    let token = host.join_token().await?;
    let dir = tempfile::tempdir()?;
    let off = host.now_ms() + 3_600_000;
    let refused = enroll(&token, None, &"n1".parse()?, dir.path(), off).await.unwrap_err();
    let EnrollError::Refused { reason, hint } = refused else { panic!("{refused:?}") };
    assert!(reason.contains("3600 s ahead") && hint.contains("timedatectl"), "{reason} {hint}");
    host.advance(Duration::from_secs(3601));
    let late = enroll(&token, None, &"n1".parse()?, dir.path(), host.now_ms()).await.unwrap_err();
    assert!(late.to_string().contains("expired"), "{late}");
    assert!(std::fs::read_dir(dir.path())?.next().is_none(), "nothing was left behind");
    Ok(())
}

#[tokio::test]
async fn token_of_another_host_is_refused() -> Result<()> {
    let (ours, theirs) = (TestHost::start().await?, TestHost::start().await?);
    let token = theirs.join_token().await?;
    let dir = tempfile::tempdir()?;
    let address = ours.host.link_address();
    let error = enroll(&token, Some(address), &"n1".parse()?, dir.path(), ours.now_ms()).await;
    let error = error.unwrap_err();
    assert!(error.to_string().contains("not from the CA in this node's join token"), "{error}");
    Ok(())
}

#[tokio::test]
async fn certificate_of_another_cluster_is_refused() -> Result<()> {
    let (ours, theirs) = (TestHost::start().await?, TestHost::start().await?);
    let runner = FakeRunner::join(&theirs, "n1", Reaction::Obey).await?;
    let own = FakeRunner::join(&ours, "n1", Reaction::Obey).await?;
    let mut forged = own.identity.clone();
    forged.certificate_pem = runner.identity.certificate_pem.clone();
    forged.key_pem = runner.identity.key_pem.clone();
    // TLS 1.3 reports it late: the first read fails.
    let refused = match connect_control(&forged).await {
        Err(_) => true,
        Ok(mut control) => {
            control.receive::<kohakuriver_runner_link::protocol::ToRunner>().await.is_err()
        }
    };
    assert!(refused);
    Ok(())
}

#[tokio::test]
async fn removed_node_is_disconnected_and_cannot_return() -> Result<()> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let created = host.post("/api/vps/create", json!({})).await?;
    assert_eq!(created.status, 200);
    let refused = host.delete("/api/nodes/n1").await?;
    assert_eq!((refused.status, refused.text("code")), (409, "node_in_use"));
    assert_eq!(host.delete("/api/nodes/n1?force=true").await?.status, 200);
    for _ in 0..6000 {
        if runner.is_disconnected() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(runner.is_disconnected());
    let identity = runner.disconnect().await;
    let error = FakeRunner::connect(&host, identity, Reaction::Obey, Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("was removed"), "{error}");
    assert_eq!(host.get("/api/nodes").await?.body, json!([]));
    Ok(())
}

#[tokio::test]
async fn second_host_on_same_data_directory_is_refused() -> Result<()> {
    let host = TestHost::start().await?;
    let before = std::fs::read_dir(host.data_dir())?.count();
    let mut config = kohakuriver_host::HostConfig {
        data_dir: host.data_dir().to_owned(),
        bind: "127.0.0.1".parse()?,
        port: 0,
        ssh_port: 0,
        https: kohakuriver_host::HttpsMode::Off,
        trusted_proxies: Vec::new(),
        names: Vec::new(),
        link_bind: "127.0.0.1".parse()?,
        link_port: 0,
        link_address: "127.0.0.1:1".parse()?,
        lost_after: Duration::from_secs(30),
        auth: kohakuriver_host::AuthConfig::default(),
        history: kohakuriver_host::History::default(),
        deadlines: kohakuriver_host::Deadlines::default(),
    };
    let second = kohakuriver_host::Host::start(config.clone(), Default::default()).await;
    assert!(second.unwrap_err().to_string().contains("another kohakuriver is running"));
    assert_eq!(std::fs::read_dir(host.data_dir())?.count(), before);
    let other = tempfile::tempdir()?;
    config.data_dir = other.path().to_owned();
    config.port = host.host.api_address().port();
    let taken = kohakuriver_host::Host::start(config, Default::default()).await.unwrap_err();
    assert!(taken.to_string().contains("is taken by another program"), "{taken}");
    Ok(())
}
