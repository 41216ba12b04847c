//! The cost of authentication: a request with a credential against one to a host without accounts,
//! and a login against its Argon2id alone.

use std::time::{Duration, Instant};

use anyhow::Result;
use argon2::Argon2;
use argon2::password_hash::PasswordHasher;
use kohakuriver_testkit::{PASSWORD, TestHost};
use serde_json::json;

use crate::sample::Line;

const REQUESTS: usize = 2000;
const LOGINS: usize = 20;
/// More than the host's cache of credentials holds.
const FORGOTTEN: Duration = Duration::from_secs(6);

pub fn run() -> Vec<Line> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let measured = runtime.map_err(anyhow::Error::from).and_then(|r| r.block_on(measure()));
    measured.expect("a host starts and answers")
}

async fn measure() -> Result<Vec<Line>> {
    let open = TestHost::start().await?;
    let closed = TestHost::start_with(|config| config.auth.enabled = true).await?;
    let (mut without, mut with, mut afresh) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..REQUESTS {
        without.push(micros(open.get("/api/nodes")).await?);
        with.push(micros(closed.get("/api/nodes")).await?);
        if round % 4 == 0 {
            closed.advance(FORGOTTEN);
            afresh.push(micros(closed.get("/api/nodes")).await?);
        }
    }
    let (mut logins, mut hashes) = (Vec::new(), Vec::new());
    let login = json!({"username": "root", "password": PASSWORD});
    for _ in 0..LOGINS {
        logins.push(micros(closed.ask(None, "POST", "/api/auth/login", Some(&login))).await? / 1e3);
        let began = Instant::now();
        let hashed = Argon2::default().hash_password(PASSWORD.as_bytes());
        anyhow::ensure!(hashed.is_ok(), "it hashes");
        hashes.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let without = Line::new("GET /api/nodes, nobody logs in", "us", without);
    let hashes = Line::new("Argon2id alone", "ms", hashes);
    Ok(vec![
        Line::new("GET /api/nodes with a token", "us", with).against(&without),
        Line::new("GET /api/nodes with a token not seen lately", "us", afresh).against(&without),
        without,
        Line::new("log-in, with its audit entry", "ms", logins).against(&hashes),
        hashes,
    ])
}

async fn micros(request: impl Future<Output = Result<kohakuriver_testkit::Answer>>) -> Result<f64> {
    let began = Instant::now();
    let answer = request.await?;
    let took = began.elapsed().as_secs_f64() * 1e6;
    anyhow::ensure!(answer.status == 200, "{answer:?}");
    Ok(took)
}
