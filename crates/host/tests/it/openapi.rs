//! The API describes itself.

use anyhow::Result;
use kohakuriver_testkit::TestHost;

#[tokio::test]
async fn every_path_of_this_version_is_in_the_document() -> Result<()> {
    let host = TestHost::start().await?;
    let document = host.get("/openapi.json").await?.body;
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    let expected = [
        "/api/auth/status",
        "/api/health",
        "/api/nodes",
        "/api/nodes/tokens",
        "/api/nodes/{name}",
        "/api/status/{task}",
        "/api/vps",
        "/api/vps/create",
        "/api/vps/restart/{task}",
        "/api/vps/status",
        "/api/vps/stop/{task}",
        "/api/vps/{task}",
        "/api/vps/{task}/stop",
    ];
    assert_eq!(paths, expected);
    assert!(document["components"]["schemas"]["Task"]["properties"]["task_id"].is_object());
    Ok(())
}
