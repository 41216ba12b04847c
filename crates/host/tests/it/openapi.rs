//! The OpenAPI document, and responses that follow it.

use std::collections::BTreeSet;

use anyhow::Result;
use kohakuriver_testkit::TestHost;
use serde_json::Value;

#[tokio::test]
async fn openapi_describes_paths_and_types() -> Result<()> {
    let host = TestHost::start().await?;
    let document = host.get("/openapi.json").await?.body;
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    // The table of `matrix` lists them all and fails on one more or one less.
    for known in ["/api/auth/login", "/api/nodes", "/api/status/{task}", "/api/vps/create"] {
        assert!(paths.iter().any(|path| path == known), "{known}");
    }
    assert!(document["components"]["schemas"]["Task"]["properties"]["task_id"].is_object());
    Ok(())
}

/// Calls `visit` with every value below `value` and its path.
fn walk<'a>(value: &'a Value, path: &str, visit: &mut impl FnMut(&str, &'a Value)) {
    visit(path, value);
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                walk(field, &format!("{path}/{name}"), visit);
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                walk(item, &format!("{path}/{at}"), visit);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The rules of OpenAPI 3.1 that generators and validators check.
#[tokio::test]
async fn openapi_document_is_valid() -> Result<()> {
    let host = TestHost::start().await?;
    let document = host.get("/openapi.json").await?.body;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut faults = Vec::new();
    walk(&document, "", &mut |path, value| {
        if let Some(target) = value.get("$ref").and_then(Value::as_str)
            && document.pointer(target.trim_start_matches('#')).is_none()
        {
            faults.push(format!("{path} refers to {target}, which is not there"));
        }
    });
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let at = format!("{method} {path}");
            let id = operation["operationId"].as_str().unwrap_or_default();
            if id.is_empty() || !ids.insert(id.to_owned()) {
                faults.push(format!("{at}: the operation id '{id}' is empty or not unique"));
            }
            let responses = operation["responses"].as_object().unwrap();
            for (status, response) in responses {
                if response["description"].as_str().unwrap_or_default().is_empty() {
                    faults.push(format!("{at}: response {status} has no description"));
                }
            }
            if !responses.contains_key("default") {
                faults.push(format!("{at}: does not say how it refuses"));
            }
            let declared: BTreeSet<&str> = operation["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|parameter| parameter["in"] == "path")
                .filter_map(|parameter| parameter["name"].as_str())
                .collect();
            let named: BTreeSet<&str> = path.split(['{', '}']).skip(1).step_by(2).collect();
            if declared != named {
                faults.push(format!("{at}: declares {declared:?} of {named:?}"));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    Ok(())
}

#[tokio::test]
async fn errors_of_the_framework_have_the_common_shape() -> Result<()> {
    let host = TestHost::start().await?;
    for path in [
        "/api/auth/users/abc",
        "/api/auth/tokens/abc",
        "/api/auth/invitations/99999999999999999999",
    ] {
        let answer = host.delete(path).await?;
        assert_eq!(answer.status, 400, "{path}");
        assert_eq!(answer.text("code"), "invalid_request", "{path}");
        assert!(!answer.text("detail").is_empty(), "{path}");
    }
    let answer = host.get("/ws/task/1/terminal").await?;
    assert!(answer.body["detail"].is_string(), "{:?}", answer.body);
    Ok(())
}

#[tokio::test]
async fn wrong_method_is_405_and_lists_allowed_ones() -> Result<()> {
    let host = TestHost::start().await?;
    for path in ["/api/nodes", "/api/vps", "/api/health"] {
        let answer = host.put(path).await?;
        assert_eq!((answer.status, answer.text("code")), (405, "wrong_method"), "{path}");
    }
    Ok(())
}
