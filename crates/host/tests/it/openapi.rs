//! The API describes itself.

use anyhow::Result;
use kohakuriver_testkit::TestHost;

#[tokio::test]
async fn every_path_of_this_version_is_in_the_document() -> Result<()> {
    let host = TestHost::start().await?;
    let document = host.get("/openapi.json").await?.body;
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    let expected = [
        "/api/auth/ca",
        "/api/auth/status",
        "/api/command/{task}/{command}",
        "/api/fs/{task}/delete",
        "/api/fs/{task}/list",
        "/api/fs/{task}/mkdir",
        "/api/fs/{task}/raw",
        "/api/fs/{task}/read",
        "/api/fs/{task}/rename",
        "/api/fs/{task}/stat",
        "/api/fs/{task}/write",
        "/api/health",
        "/api/kill/{task}",
        "/api/nodes",
        "/api/nodes/tokens",
        "/api/nodes/{name}",
        "/api/nodes/{name}/drain",
        "/api/nodes/{name}/health",
        "/api/nodes/{name}/labels",
        "/api/nodes/{name}/undrain",
        "/api/status/{task}",
        "/api/vm/images/{hostname}",
        "/api/vps",
        "/api/vps/create",
        "/api/vps/my",
        "/api/vps/pause/{task}",
        "/api/vps/restart/{task}",
        "/api/vps/resume/{task}",
        "/api/vps/snapshots/{task}",
        "/api/vps/snapshots/{task}/latest",
        "/api/vps/snapshots/{task}/{which}",
        "/api/vps/snapshots/{task}/{which}/restore",
        "/api/vps/status",
        "/api/vps/stop/{task}",
        "/api/vps/vm-instances",
        "/api/vps/vm-instances/{task}",
        "/api/vps/{task}",
        "/api/vps/{task}/events",
        "/api/vps/{task}/keys",
        "/api/vps/{task}/stop",
        "/api/vps/{task}/stream",
    ];
    assert_eq!(paths, expected);
    assert!(document["components"]["schemas"]["Task"]["properties"]["task_id"].is_object());
    Ok(())
}
