//! The API describes itself.

use anyhow::Result;
use kohakuriver_testkit::TestHost;

#[tokio::test]
async fn the_api_describes_its_paths_and_their_types() -> Result<()> {
    let host = TestHost::start().await?;
    let document = host.get("/openapi.json").await?.body;
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    // All of them are in the table of `matrix`, which fails on one more or one less.
    for known in ["/api/auth/login", "/api/nodes", "/api/status/{task}", "/api/vps/create"] {
        assert!(paths.iter().any(|path| path == known), "{known}");
    }
    assert!(document["components"]["schemas"]["Task"]["properties"]["task_id"].is_object());
    Ok(())
}
