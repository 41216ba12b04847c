//! Responses to file requests without an agent. The rest is in e2e.

use anyhow::Result;
use kohakuriver_testkit::{FakeRunner, Reaction, TestHost};
use serde_json::json;

#[tokio::test]
async fn invalid_file_requests_are_refused_with_reason() -> Result<()> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    assert_eq!(host.post("/api/vps/create", json!({"name": "web"})).await?.status, 200);
    let stat = async |task: &str, path: &str| {
        host.get(&format!("/api/fs/{task}/stat?path={path}")).await.unwrap()
    };
    let unknown = stat("nobody", "/etc").await;
    assert_eq!((unknown.status, unknown.text("code")), (404, "not_found"));
    for path in ["etc", "/proc/1/mem", "/etc/../dev/sda"] {
        assert_eq!(stat("web", path).await.status, 400, "{path}");
    }
    let refused = host.get("/api/fs/web/list?path=/proc").await?;
    assert_eq!(refused.text("code"), "forbidden_path");
    assert_eq!(host.get("/api/fs/web/stat").await?.status, 422);
    let body = json!({"path": "/x", "content": "x", "encoding": "latin"});
    assert_eq!(host.post("/api/fs/web/write", body).await?.status, 422);
    let body = json!({"path": "/x", "content": "x".repeat(51 << 20)});
    let large = host.post("/api/fs/web/write", body).await?;
    assert_eq!((large.status, large.text("code")), (413, "too_large"));

    // Another process than an agent responds there.
    let strange = stat("web", "/etc").await;
    assert_eq!((strange.status, strange.text("code")), (502, "connection_lost"));
    assert_eq!(host.post("/api/vps/stop/web", json!({})).await?.status, 202);
    host.wait_for("web", "stopped").await?;
    let stopped = stat("web", "/etc").await;
    assert_eq!((stopped.status, stopped.text("code")), (400, "not_running"));
    assert_eq!(host.post("/api/vps/restart/web", json!({})).await?.status, 202);
    host.wait_for("web", "running").await?;
    runner.disconnect().await;
    let away = async || stat("web", "/etc").await.status;
    for _ in 0..100 {
        if away().await == 503 {
            return Ok(());
        }
    }
    panic!("a node that is away was asked: {}", away().await);
}
