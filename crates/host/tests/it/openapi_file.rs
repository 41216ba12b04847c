//! `crates/api/openapi.json` is the document that this host serves.
//!
//! `make reference` writes it: this test with `KOHAKURIVER_WRITE_REFERENCE=1`.

use std::path::Path;

use anyhow::Result;
use kohakuriver_testkit::TestHost;

#[tokio::test]
async fn openapi_file_is_current() -> Result<()> {
    let host = TestHost::start().await?;
    let mut served = serde_json::to_string_pretty(&host.get("/openapi.json").await?.body)?;
    served.push('\n');
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/openapi.json");
    if std::env::var_os("KOHAKURIVER_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, &served)?;
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == served, "crates/api/openapi.json is stale: run `make reference`");
    Ok(())
}
