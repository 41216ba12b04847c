//! The audit log under refused requests and at its limits.

use std::time::Duration;

use anyhow::Result;
use kohakuriver_host::AuditLimits;
use kohakuriver_testkit::TestHost;
use serde_json::json;

#[tokio::test]
async fn refused_requests_in_a_loop_do_not_fill_the_log() -> Result<()> {
    let host = TestHost::start_with(|config| config.auth.enabled = true).await?;
    let vera = host.person("vera", "viewer").await?;
    let before = host.get("/api/audit/verify").await?.body["entries"].as_u64().unwrap();
    for n in 0..500 {
        let refused =
            host.post_as(&vera, &format!("/api/nodes/zzz{}/drain", n % 10), json!({})).await?;
        assert_eq!(refused.status, 403);
    }
    let after = host.get("/api/audit/verify").await?.body["entries"].as_u64().unwrap();
    assert!(after - before <= 121, "{before} to {after}");
    // A different act among them is not hidden: it is counted separately.
    assert_eq!(host.post_as(&vera, "/api/nodes/prey/drain", json!({})).await?.status, 403);
    host.advance(Duration::from_secs(61));
    let prey = "/api/audit?actor=vera&object=name%20prey&after=0";
    let noise = "/api/audit?actor=vera&object=name%20zzz3&after=0&limit=1000";
    let mut found = json!([]);
    for _ in 0..600 {
        found = host.get(prey).await?.body;
        if found != json!([]) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((&found[0]["action"], &found[0]["result"]), (&json!("node.drain"), &json!("role")));
    let noise = host.get(noise).await?.body;
    let last = noise.as_array().unwrap().last().unwrap()["detail"].as_str().unwrap().to_owned();
    assert!(last.contains("times within"), "{last}");
    assert_eq!(host.get("/api/audit/verify").await?.body["intact"], true);
    Ok(())
}

#[tokio::test]
async fn audit_log_beyond_limits_is_pruned_at_start() -> Result<()> {
    let host = TestHost::start_with(|config| {
        config.auth.enabled = true;
        config.history.audit = AuditLimits { max_age_ms: 3_600_000, ..AuditLimits::default() };
    })
    .await?;
    host.person("vera", "viewer").await?;
    host.advance(Duration::from_secs(7200));
    let host = host.restart().await?;
    let mut verified = json!({});
    for _ in 0..600 {
        verified = host.get("/api/audit/verify").await?.body;
        if verified["pruned"] != json!(0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(verified["intact"], true, "{verified}");
    assert!(verified["pruned"].as_u64() > Some(0), "{verified}");
    Ok(())
}
